"""What happens to jobs and runs, told as it happens: any number of watchers, one reader."""
