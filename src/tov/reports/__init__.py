"""Reports: what run folders say, as Markdown and figures. `numbers` computes what a run stores; the rest only renders."""
