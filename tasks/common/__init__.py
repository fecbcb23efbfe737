"""What several stages share: table contracts, params, atomic files, the way a stage starts and ends."""
