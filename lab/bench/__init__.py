"""What `lab.quality` and `lab.speed` are made of, one file a job."""
