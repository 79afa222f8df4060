"""The proofs: a workload, a fault, a full drain, and a checker that counts what became of each message."""
