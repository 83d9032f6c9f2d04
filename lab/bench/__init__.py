"""What `lab.quality` and `lab.speed` are made of, one file a job: cases, rows, runners, metrics, cost, verdict, report."""
