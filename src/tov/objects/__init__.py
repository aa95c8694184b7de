"""Object stores (`s3://`, `gs://`, `hf://` and whatever fsspec opens): inputs are fetched, run folders are mirrored."""
