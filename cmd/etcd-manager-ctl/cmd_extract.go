package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
	"github.com/etcd-manager/etcd-manager/pkg/operator/putback"
)

type extractOptions struct {
	key, namespace string
	prefix         bool
	at             string
	revision       int64
	file, dir      string
	tempDir        string
}

func extractCommand(a *app) *cobra.Command {
	var o extractOptions
	cmd := &cobra.Command{
		Use: "extract [KEY]", Short: "Write the old value of a key, or of all keys of a prefix", Args: atMostOne,
		Long: `Write the old value of a key, byte by byte, to standard output or a file: the value at a time or a
revision, or without either the newest kept value. With --prefix or --namespace, all keys below it are written to a
new directory: a file for each value, index.json, which describes them, and put-back.sh, which puts them back with
etcdctl. Nothing is restored.`,
		Example: "  etcd-manager-ctl --backup-store=s3://bucket/prefix extract /registry/configmaps/shop/settings --at=12:03:06 --output-file=settings",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.key = args[0]
			}
			return runExtract(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.at, "at", "", "the value at this `time`: RFC 3339, \"2026-11-22 12:03:06\", 12:03:06 (today, UTC), or how long ago")
	f.Int64Var(&o.revision, "at-revision", 0, "the value at this revision")
	f.BoolVar(&o.prefix, "prefix", false, "all keys that begin with KEY")
	f.StringVar(&o.namespace, "namespace", "", "all objects of this Kubernetes `namespace`, and the namespace itself")
	f.StringVar(&o.file, "output-file", "", "the `file` for a single value, which must not exist (default: standard output)")
	f.StringVar(&o.dir, "output-dir", "", "the `directory` for many values, which must not exist (default: extracted-REVISION)")
	addTempDir(cmd, &o.tempDir)
	return cmd
}

func (o extractOptions) many() bool { return o.prefix || o.namespace != "" }

func (o extractOptions) validate() error {
	switch {
	case o.namespace != "" && o.key != "":
		return ui.Usagef("--namespace takes no key")
	case o.namespace == "" && o.key == "":
		return ui.Usagef("extract needs a key, or --namespace")
	case o.at != "" && o.revision != 0, o.revision < 0:
		return ui.Usagef("either --at or --at-revision, which is positive")
	case o.many() && o.file != "":
		return ui.Usagef("--output-file is for a single key: use --output-dir")
	case !o.many() && o.dir != "":
		return ui.Usagef("--output-dir is for --prefix and --namespace: use --output-file")
	}
	return nil
}

func runExtract(ctx context.Context, a *app, o extractOptions) error {
	if err := a.format(); err != nil {
		return err
	}
	if err := o.validate(); err != nil {
		return err
	}
	at, err := whenFlag(a, "at", o.at)
	if err != nil {
		return err
	}
	for _, path := range []string{o.file, o.dir} {
		if path == "" {
			continue
		}
		if _, err := os.Lstat(path); err == nil {
			return ui.Usagef("%s exists: name a new file", path)
		}
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	x, err := c.Extract(ctx, operator.ExtractRequest{Key: o.key, Prefix: o.prefix, Namespace: o.namespace, At: at,
		Revision: o.revision, VerifyOptions: a.verifyOptions(o.tempDir)})
	if err != nil {
		return err
	}
	if o.many() {
		return writeMany(a, o, x)
	}
	return writeOne(a, o, x)
}

// writeOne writes a single value.
func writeOne(a *app, o extractOptions, x *operator.Extracted) error {
	kv := x.Values[0]
	if o.file == "" {
		if a.outTerminal && (!utf8.Valid(kv.Value) || strings.ContainsRune(string(kv.Value), 0)) {
			return ui.Usagef("the value of %s is binary, %s: write it to a file with --output-file", ui.Readable(o.key),
				ui.Size(int64(len(kv.Value))))
		}
		if _, err := a.out.Write(kv.Value); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	} else if err := putback.WriteFile(o.file, kv.Value); err != nil {
		return err
	}
	a.note("%s as it was at revision %d: %s, last changed by revision %d", ui.Readable(o.key), x.Plan.Revision,
		ui.Size(int64(len(kv.Value))), kv.ModRevision)
	if o.file != "" {
		a.note("put it back: etcdctl put %s <%s", ui.ShellWord(o.key), ui.ShellWord(o.file))
	}
	tellLeases(a, x)
	return nil
}

// tellLeases says that what hung on a lease will not end by itself when it is put back.
func tellLeases(a *app, x *operator.Extracted) {
	n := 0
	for _, kv := range x.Values {
		if kv.Lease != 0 {
			n++
		}
	}
	if n > 0 {
		a.note("%s had a lease; put back like this, it has none and never expires", ui.Count(n, "key"))
	}
}

// writeMany writes a directory, which has its name only when it is whole.
func writeMany(a *app, o extractOptions, x *operator.Extracted) error {
	what := ui.Readable(o.key)
	if o.namespace != "" {
		what = "namespace " + o.namespace
	}
	if len(x.Values) == 0 {
		return &notFoundError{fmt.Sprintf("%s has no keys at revision %d: etcd-manager-ctl before finds the revision before a deletion",
			what, x.Plan.Revision)}
	}
	dir := o.dir
	if dir == "" {
		dir = fmt.Sprintf("extracted-%d", x.Plan.Revision)
	}
	if _, err := os.Lstat(dir); err == nil {
		return ui.Usagef("%s exists: name another one with --output-dir", dir)
	}
	dir = filepath.Clean(dir)
	if err := putback.Write(dir, x); err != nil {
		return err
	}
	var size int64
	for _, kv := range x.Values {
		size += int64(len(kv.Value))
	}
	tellLeases(a, x)
	return a.printf(`%s as it was at revision %d: %s, %s, in %s
put one back:  etcdctl put KEY <FILE        (index.json says which file is which key's)
put all back:  cd %s && sh -e put-back.sh   (existing keys are left alone; ETCDCTL names another etcdctl)
API servers see it like any other write: you don't need to restart anything.
`, what, x.Plan.Revision, ui.Count(len(x.Values), "key"), ui.Size(size), dir, ui.ShellWord(dir))
}
