"""Generated stubs of the contract in `protos/`. Never edited by hand."""
