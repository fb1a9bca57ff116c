"""The `manta` command's subcommands; `deployments.cli` puts them together."""
