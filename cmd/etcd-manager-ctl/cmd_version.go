package main

import (
	"github.com/spf13/cobra"
)

func versionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this tool, and the commit and the compiler it was built from", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := a.format("json"); err != nil {
				return err
			}
			if a.output == "json" {
				return a.printJSON(a.build)
			}
			return a.printf("%s\n", a.build)
		},
	}
}
