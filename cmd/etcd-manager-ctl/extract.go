package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/kube"
)

type extractOptions struct {
	key, namespace string
	prefix         bool
	at             string
	revision       int64
	file, dir      string
	tempDir        string
}

func (a *app) extractCommand() *cobra.Command {
	var o extractOptions
	cmd := &cobra.Command{
		Use: "extract [KEY]", Short: "Write out a key, or all keys of a prefix, as they were", Args: atMostOne,
		Long: `Write out the value of a key as it was at a time or a revision (without either: as it is kept last), byte by byte, to standard output or a file. With --prefix, or
--namespace, all keys below it are written into a directory that mustn't exist: a file for each value, index.json, which says what they are, and put-back.sh, which puts them back with
etcdctl. Nothing is restored.`,
		Example: "  etcd-manager-ctl --backup-store=s3://bucket/prefix extract /registry/configmaps/shop/settings --at=12:03:06 --output-file=settings",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.key = args[0]
			}
			return a.extract(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.at, "at", "", "as it was at this `time`: RFC 3339, \"2026-11-22 12:03:06\", 12:03:06 (today, UTC), or how long ago")
	f.Int64Var(&o.revision, "at-revision", 0, "as it was at this revision")
	f.BoolVar(&o.prefix, "prefix", false, "all keys that begin with KEY")
	f.StringVar(&o.namespace, "namespace", "", "all that was in this Kubernetes `namespace`, and itself")
	f.StringVar(&o.file, "output-file", "", "the `file` for a single value, which mustn't exist (default: standard output)")
	f.StringVar(&o.dir, "output-dir", "", "the `directory` for many, which mustn't exist (default: extracted-REVISION)")
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

func (o extractOptions) wanted() changelog.Wanted {
	if o.namespace != "" {
		return changelog.Wanted{Key: kube.Registry, Prefix: true, Match: kube.InNamespace(o.namespace)}
	}
	return changelog.Wanted{Key: o.key, Prefix: o.prefix}
}

func (a *app) extract(ctx context.Context, o extractOptions) error {
	if err := a.format(); err != nil {
		return err
	}
	if err := o.validate(); err != nil {
		return err
	}
	at, err := a.whenFlag("at", o.at)
	if err != nil {
		return err
	}
	for _, path := range []string{o.file, o.dir} {
		if path == "" {
			continue
		}
		if _, err := os.Lstat(path); err == nil {
			return ui.Usagef("%s exists: name one that doesn't", path)
		}
	}
	c, err := a.openCatalog(ctx)
	if err != nil {
		return err
	}
	target := changelog.Target{Time: at, Revision: o.revision, Latest: at.IsZero() && o.revision == 0}
	x, err := a.extracted(ctx, c, target, o)
	if err != nil {
		return err
	}
	if o.many() {
		return a.writeMany(o, x)
	}
	return a.writeOne(o, x)
}

func (a *app) extracted(ctx context.Context, c *catalog.Catalog, t changelog.Target, o extractOptions) (*changelog.Extracted, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("extract: %w", err)
	}
	dir, remove, err := scratch(o.tempDir)
	if err != nil {
		return nil, err
	}
	defer remove()
	return a.archive(c).Extract(ctx, t, o.wanted(), changelog.Fetching{
		Executable: exe, Dir: dir,
		Fetch: func(ctx context.Context, name, path string) error {
			ch, err := a.choose(ctx, c, name)
			if err != nil {
				return err
			}
			_, err = a.fetchFile(ctx, c, ch, path)
			return err
		},
	})
}

// writeOne writes a single value.
func (a *app) writeOne(o extractOptions, x *changelog.Extracted) error {
	kv := x.Values[0]
	if o.file == "" {
		if a.outTerminal && (!utf8.Valid(kv.Value) || strings.ContainsRune(string(kv.Value), 0)) {
			return ui.Usagef("the value of %s is binary, %s: write it to a file with --output-file", ui.Readable(o.key), ui.Size(int64(len(kv.Value))))
		}
		if _, err := a.out.Write(kv.Value); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	} else if err := writeNew(o.file, kv.Value); err != nil {
		return err
	}
	a.note("%s as it was at revision %d: %s, last changed by revision %d", ui.Readable(o.key), x.Plan.Revision, ui.Size(int64(len(kv.Value))), kv.ModRevision)
	if o.file != "" {
		a.note("put it back: etcdctl put %s <%s", ui.ShellWord(o.key), ui.ShellWord(o.file))
	}
	a.tellLeases(x)
	return nil
}

// tellLeases says that what hung on a lease will not end by itself when it is put back.
func (a *app) tellLeases(x *changelog.Extracted) {
	n := 0
	for _, kv := range x.Values {
		if kv.Lease != 0 {
			n++
		}
	}
	if n > 0 {
		a.note("%s hung on a lease; put back so, it stays for ever", ui.Count(n, "key"))
	}
}

// indexOutput is index.json.
type indexOutput struct {
	// Revision is the point, Backup what it was read from.
	Revision int64        `json:"revision"`
	Backup   string       `json:"backup"`
	Keys     []indexEntry `json:"keys"`
}

type indexEntry struct {
	Key            string `json:"key"`
	KeyBase64      []byte `json:"keyBase64,omitempty"` // of a key that is no text
	File           string `json:"file"`
	Size           int    `json:"size"`
	CreateRevision int64  `json:"createRevision"`
	ModRevision    int64  `json:"modRevision"`
	Version        int64  `json:"version"`
	Lease          int64  `json:"lease,omitempty"`
}

// writeMany writes a directory, which has its name only when it is whole.
func (a *app) writeMany(o extractOptions, x *changelog.Extracted) (err error) {
	what := ui.Readable(o.key)
	if o.namespace != "" {
		what = "namespace " + o.namespace
	}
	if len(x.Values) == 0 {
		return &notFoundError{fmt.Sprintf("nothing of %s is there at revision %d: etcd-manager-ctl before finds the revision before a deletion", what, x.Plan.Revision)}
	}
	dir := o.dir
	if dir == "" {
		dir = fmt.Sprintf("extracted-%d", x.Plan.Revision)
	}
	if _, err := os.Lstat(dir); err == nil {
		return ui.Usagef("%s exists: name another one with --output-dir", dir)
	}
	dir = filepath.Clean(dir)
	half, err := os.MkdirTemp(filepath.Dir(dir), ".extract-")
	if err != nil {
		return fmt.Errorf("write %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(half))
		}
	}()
	if err := writeValues(half, x); err != nil {
		return err
	}
	if err := os.Rename(half, dir); err != nil {
		return fmt.Errorf("write %s: %w", dir, err)
	}
	var size int64
	for _, kv := range x.Values {
		size += int64(len(kv.Value))
	}
	a.tellLeases(x)
	return a.printf(`%s as it was at revision %d: %s, %s, in %s
put one back:  etcdctl put KEY <FILE        (index.json says which file is which key's)
put all back:  cd %s && sh -e put-back.sh   (what exists is left alone; ETCDCTL names another etcdctl)
API servers see it as any other write: nothing has to be restarted.
`, what, x.Plan.Revision, ui.Count(len(x.Values), "key"), ui.Size(size), dir, ui.ShellWord(dir))
}

func writeValues(dir string, x *changelog.Extracted) error {
	index := indexOutput{Revision: x.Plan.Revision, Backup: x.Plan.Base}
	taken := map[string]bool{}
	for i, kv := range x.Values {
		name := safeName(kv.Key)
		if taken[name] || len(name) > maxName {
			name = fmt.Sprintf("%.*s~%d", maxName, name, i)
		}
		taken[name] = true
		if err := writeNew(filepath.Join(dir, name), kv.Value); err != nil {
			return err
		}
		e := indexEntry{Key: string(kv.Key), File: name, Size: len(kv.Value), CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version, Lease: kv.Lease}
		if !utf8.Valid(kv.Key) {
			e.Key, e.KeyBase64 = "", kv.Key
		}
		index.Keys = append(index.Keys, e)
	}
	data, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return fmt.Errorf("encode index: %w", err)
	}
	if err := writeNew(filepath.Join(dir, "index.json"), append(data, '\n')); err != nil {
		return err
	}
	return writeNew(filepath.Join(dir, "put-back.sh"), []byte(putBack(x.Values, index)))
}

// putBack is a script that puts back what isn't there. A namespace comes first, since API servers want it when they get what is in it.
func putBack(values []*mvccpb.KeyValue, index indexOutput) string {
	var first, rest strings.Builder
	for i, kv := range values {
		to := &rest
		if strings.HasPrefix(string(kv.Key), kube.NamespacesPrefix) {
			to = &first
		}
		switch {
		case bytes.IndexByte(kv.Key, 0) >= 0: // no argument of a program can have it
			key := txnWord(kv.Key)
			fmt.Fprintf(to, "txn '%s' <<'END'\ncreate(%s) = \"0\"\n\nput -- %s %s\n\n\nEND\n", key, key, key, txnWord(kv.Value))
		case len(kv.Value) == 0: // etcdctl doesn't take an empty standard input for a value
			fmt.Fprintf(to, "put %s\n", quoted(kv.Key))
		default:
			fmt.Fprintf(to, "put %s ./%s\n", quoted(kv.Key), index.Keys[i].File)
		}
	}
	return putBackHead + first.String() + rest.String()
}

// quoted makes a word of a shell of bytes without a NUL.
func quoted(b []byte) string { return "'" + strings.ReplaceAll(string(b), "'", `'\''`) + "'" }

// txnWord writes bytes as "etcdctl txn" reads them. All versions of it understand an escaped byte, not all an escaped quote.
func txnWord(b []byte) string {
	var s strings.Builder
	s.WriteByte('"')
	for _, c := range b {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("/._-", c) >= 0 {
			s.WriteByte(c)
		} else {
			fmt.Fprintf(&s, `\x%02x`, c)
		}
	}
	s.WriteByte('"')
	return s.String()
}

const putBackHead = `# Puts back what was extracted and isn't there now. ETCDCTL is the etcdctl to use; its own variables (ETCDCTL_ENDPOINTS and so on) say where etcd is.
set -e
cd -- "$(dirname -- "$0")"
say() { printf '%s\n' "$*"; }
put() {
  there=$(${ETCDCTL:-etcdctl} get --count-only -w fields -- "$1")
  case $there in
  *'"Count" : 0'*)
    if [ $# = 1 ]; then
      ${ETCDCTL:-etcdctl} put -- "$1" '' >/dev/null
    else
      ${ETCDCTL:-etcdctl} put -- "$1" <"$2" >/dev/null
    fi
    say "brought back: $1"
    ;;
  *'"Count" : '*)
    say "exists, left alone: $1"
    ;;
  *)
    say "etcdctl didn't tell whether it exists: $1" >&2
    exit 1
    ;;
  esac
}
# txn is for keys that no command line can carry.
txn() {
  answer=$(${ETCDCTL:-etcdctl} txn -w simple)
  case $answer in
  SUCCESS*)
    say "brought back: $1"
    ;;
  FAILURE*)
    say "exists, left alone: $1"
    ;;
  *)
    say "etcdctl didn't tell whether it exists: $1" >&2
    exit 1
    ;;
  esac
}
`

// maxName keeps the names of files within what file systems take.
const maxName = 200

// safeName makes a file's name of a key. Two keys may get the same.
func safeName(key []byte) string {
	s := strings.Map(func(r rune) rune {
		switch {
		case r == '/':
			return '_'
		case r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r):
			return r
		}
		return '~'
	}, strings.Trim(string(key), "/"))
	return strings.TrimLeft(s, ".-") + ".value"
}

// writeNew writes a file that mustn't exist, readable by nobody else: it may be a secret.
func writeNew(path string, data []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write value: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("write value: %w", cerr)
		}
	}()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write value: %w", err)
	}
	return f.Sync()
}
