// Package putback writes keys that were extracted into a directory, with a script that puts back with etcdctl what isn't there any more.
package putback

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/kube"
)

// Index is index.json.
type Index struct {
	// Revision is the point, Backup what it was read from.
	Revision int64   `json:"revision"`
	Backup   string  `json:"backup"`
	Keys     []Entry `json:"keys"`
}

// Entry is one key.
type Entry struct {
	Key            string `json:"key"`
	KeyBase64      []byte `json:"keyBase64,omitempty"` // of a key that is no text
	File           string `json:"file"`
	Size           int    `json:"size"`
	CreateRevision int64  `json:"createRevision"`
	ModRevision    int64  `json:"modRevision"`
	Version        int64  `json:"version"`
	Lease          int64  `json:"lease,omitempty"`
}

// Write writes a directory that mustn't exist: a file for each value, index.json, which says what they are, and put-back.sh. It has its
// name only when it is whole. Nobody else can read it: values may be secrets.
func Write(dir string, x *changelog.Extracted) (err error) {
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
	return nil
}

func writeValues(dir string, x *changelog.Extracted) error {
	index := Index{Revision: x.Plan.Revision, Backup: x.Plan.Base}
	taken := map[string]bool{}
	for i, kv := range x.Values {
		name := safeName(kv.Key)
		if taken[name] || len(name) > maxName {
			name = fmt.Sprintf("%.*s~%d", maxName, name, i)
		}
		taken[name] = true
		if err := WriteFile(filepath.Join(dir, name), kv.Value); err != nil {
			return err
		}
		e := Entry{Key: string(kv.Key), File: name, Size: len(kv.Value), CreateRevision: kv.CreateRevision,
			ModRevision: kv.ModRevision, Version: kv.Version, Lease: kv.Lease}
		if !utf8.Valid(kv.Key) {
			e.Key, e.KeyBase64 = "", kv.Key
		}
		index.Keys = append(index.Keys, e)
	}
	data, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return fmt.Errorf("encode index: %w", err)
	}
	if err := WriteFile(filepath.Join(dir, "index.json"), append(data, '\n')); err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, "put-back.sh"), []byte(script(x.Values, index)))
}

// script is a shell script that puts back what isn't there. A namespace comes first, since API servers want it when they get what is in it.
func script(values []*mvccpb.KeyValue, index Index) string {
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
	return scriptHead + first.String() + rest.String()
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

const scriptHead = `# Puts back what was extracted and isn't there now. ETCDCTL is the etcdctl to use; its own variables (ETCDCTL_ENDPOINTS and so on) say where etcd is.
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
    say "etcdctl didn't say whether it exists: $1" >&2
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
    say "etcdctl didn't say whether it exists: $1" >&2
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

// WriteFile writes a file that mustn't exist, readable by nobody else: it may be a secret.
func WriteFile(path string, data []byte) (err error) {
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
