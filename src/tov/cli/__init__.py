"""The command line: verbs, their flags made from the settings, the demo."""
