"""Cases that a checkpoint was pre-trained on, and cases that are meant to test it → which are the same images."""
