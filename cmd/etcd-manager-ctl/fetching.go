package main

import (
	"sync"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// addTempDir declares the flag for where backups are put for a while.
func addTempDir(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "temp-dir", "", "the `directory` for temporary files, with enough disk space for the decompressed backup (default: the system's)")
}

// transfers shows a bar on the standard error for what is fetched or stored, if that is a screen.
func (a *app) transfers() operator.Transfers {
	var mu sync.Mutex
	var bar *ui.Transfer
	return func(t operator.Transfer) {
		mu.Lock()
		defer mu.Unlock()
		if bar == nil && !t.Over {
			bar = ui.NewTransfer(a.errOut, a.errTerminal, t.Doing+" "+t.What)
		}
		switch {
		case bar == nil:
		case t.Over:
			bar.Close()
			bar = nil
		default:
			bar.Set(t.Done, t.Total)
		}
	}
}

func (a *app) verifyOptions(tempDir string) operator.VerifyOptions {
	return operator.VerifyOptions{TempDir: tempDir, Transfers: a.transfers()}
}
