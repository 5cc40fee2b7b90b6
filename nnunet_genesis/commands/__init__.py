"""The commands of `nnunet_genesis`: words → calls → text."""
