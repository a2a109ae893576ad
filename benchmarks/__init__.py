"""Side-by-side figures against the tools people use otherwise; each module is a command."""
