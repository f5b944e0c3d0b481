package main

import (
	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this tool", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := a.format("json"); err != nil {
				return err
			}
			if a.output == "json" {
				return a.printJSON(map[string]string{"version": a.version})
			}
			return a.printf("%s\n", a.version)
		},
	}
}
