"""What pre-training is worth on a dataset: a study is planned, run and reported, on one folder."""
