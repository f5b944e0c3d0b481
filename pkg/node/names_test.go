package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// forged are names that would lead out of the data dir, or to what isn't the name's own in it.
func forged() []string {
	return []string{"../../..", "../..", "..", ".", "../../pki", "../../../outside", "/", "/etc", "a/../../..", "a/b", `..\..`,
		"a\x00b", ".hidden", strings.Repeat("a/../", 50) + "..", strings.Repeat("x", 5000)}
}

// around lays out a data dir with something beside it, and returns it with a function that tells what is missing.
func around(t *testing.T) (dir string, missing func() string) {
	t.Helper()
	top := t.TempDir()
	dir = filepath.Join(top, "outside", "data-dir")
	l := layout(dir)
	files := []string{filepath.Join(top, "outside", "sentinel"), filepath.Join(top, "sentinel"), filepath.Join(dir, "myid"),
		filepath.Join(l.pki("T1"), "me.key"),
		filepath.Join(l.data("T1"), "member", "x"), filepath.Join(l.trash("T0"), "member", "x"), l.journal()}
	for _, f := range files[:len(files)-1] {
		must(t, os.MkdirAll(filepath.Dir(f), 0o700))
		must(t, os.WriteFile(f, []byte("kept"), 0o600))
	}
	must(t, os.MkdirAll(l.own(), 0o700))
	must(t, os.WriteFile(l.journal(), []byte(`{"version":1,"clusterName":"test"}`), 0o600))
	return dir, func() string {
		var gone []string
		for _, f := range files {
			if !exists(f) {
				gone = append(gone, strings.TrimPrefix(f, top))
			}
		}
		return strings.Join(gone, " ")
	}
}

// TestForgedNamesInRequests: no request of a leader, who has what it says from the store, makes root touch
// anything else than the name's own entry.
func TestForgedNamesInRequests(t *testing.T) {
	dir, missing := around(t)
	n := newNode(t, "a", func(s *setup) { s.Dir = dir })
	for _, name := range forged() {
		name = strings.ToValidUTF8(name, "")
		s := testState(cluster.Token(name))
		s.Nodes = []cluster.EtcdNode{n.s.Self}
		for what, req := range map[string]*protosv1.PerformRequest{
			"discard": discardAction(name), "prove": proveAction(name, "b"), "stop": stopAction(name, ""), "stage": stageAction(name, "b",
				testState("T2")),
			"halt": haltAction(name), "rollback": rollbackAction(name), "verify": verifyAction(name), "salvage": salvageAction(name, "T1", "b", "r"),
			"stage under it": stageAction("op1", "b", s), "switch to it": switchAction("op1", s), "set aside": asideAction(cluster.Token(name)),
			"salvage it": salvageAction("op1", cluster.Token(name), "b", "r"),
			"start under it": {Action: &protosv1.PerformRequest_StartEtcd{StartEtcd: &protosv1.StartEtcd{
				State: wire.StateToProto(s), MayBeEmpty: true}}},
		} {
			_, _, err := n.try(req)
			if status.Code(err) != codes.DataLoss || !strings.Contains(err.Error(), "not usable as a name") {
				t.Errorf("%s of %.30q: %v", what, name, err)
			}
			if gone := missing(); gone != "" {
				t.Fatalf("%s of %.30q has removed %s", what, name, gone)
			}
		}
	}
	if got := n.status(); got.State != nil || len(got.Staged) > 0 {
		t.Errorf("the node has taken something: %+v", got)
	}
}

// TestForgedNamesOnDisk: a state file or journal with such a name isn't obeyed, and nothing is removed for it.
func TestForgedNamesOnDisk(t *testing.T) {
	for _, name := range []string{"../../..", "..", ".", "a/b", `a\b`, ".x"} {
		dir, missing := around(t)
		l := layout(dir)
		s := testState(cluster.Token(name))
		must(t, writeState(l.state(), s))
		if got, err := readState(l.state()); !errors.Is(err, cluster.ErrCorrupt) || !errors.Is(err, cluster.ErrName) {
			t.Errorf("state file with token %q: %+v, %v", name, got, err)
		}
		s = testState("T1")
		s.Nodes[0].Name = name
		must(t, writeState(l.state(), s))
		if got, err := readState(l.state()); !errors.Is(err, cluster.ErrCorrupt) || !errors.Is(err, cluster.ErrName) {
			t.Errorf("state file with member %q: %+v, %v", name, got, err)
		}
		must(t, os.Remove(l.state()))
		text := strings.ReplaceAll(name, `\`, `\\`)
		for _, journal := range []string{`"operation":{"id":"` + text + `"}`, `"operation":{"id":"op","phase":"staged","token":"` + text +
			`"}`, `"mayBeEmpty":"` + text + `"`} {
			must(t, os.WriteFile(l.journal(), []byte(`{"version":1,"clusterName":"test",`+journal+`}`), 0o600))
			if a, err := New(testConfig(dir)); !errors.Is(err, cluster.ErrCorrupt) {
				t.Errorf("journal with %s: %v, %v", journal, a, err)
			}
		}
		if gone := missing(); gone != "" {
			t.Errorf("%q has removed %s", name, gone)
		}
	}
}

// TestRemoveOnlyEntries: even a name that nobody has checked removes and renames nothing but an entry of the data dir.
func TestRemoveOnlyEntries(t *testing.T) {
	dir, missing := around(t)
	l := layout(dir)
	for _, name := range forged() {
		for _, path := range []string{l.staging(cluster.OperationID(name)), l.data(cluster.Token(name)),
			l.halfStaged(cluster.Token(name)), l.pki(cluster.Token(name)), l.trash(cluster.Token(name)), filepath.Join(l.data("T1"), name)} {
			if _, inside := strings.CutPrefix(path, l.stagingRoot()+"/"); inside {
				continue
			}
			if filepath.Dir(path) == l.dataRoot() && filepath.Base(path) == "T1" || filepath.Dir(path) == l.trashRoot() &&
				filepath.Base(path) == "T0" {
				continue // its own name
			}
			_ = l.removeAll(path)
			_ = l.rename(path, l.trash("X"))
			_ = l.rename(l.data("nothing"), path)
			if gone := missing(); gone != "" {
				t.Fatalf("%.40q as %.80s has removed %s", name, path, gone)
			}
		}
	}
	for _, path := range []string{dir, l.dataRoot(), l.trashRoot(), l.own(), l.stagingRoot(), l.state(), l.journal(), filepath.Dir(dir), "/"} {
		if err := l.removeAll(path); !errors.Is(err, errOutside) {
			t.Errorf("remove %s: %v", path, err)
		}
		if err := l.rename(path, l.trash("X")); !errors.Is(err, errOutside) {
			t.Errorf("rename %s: %v", path, err)
		}
		if err := l.rename(l.data("T1"), path); !errors.Is(err, errOutside) {
			t.Errorf("rename to %s: %v", path, err)
		}
	}
	must(t, l.rename(l.data("T1"), l.trash("T1")))
	must(t, l.removeAll(l.trash("T1")))
	must(t, l.removeAll(l.trash("T1"))) // what isn't there is removed already
	if exists(l.trash("T1")) || exists(l.data("T1")) {
		t.Error("an entry can't be renamed or removed")
	}
}

// TestSymlinksLeadNowhere: a symlink in the data dir costs what it points to nothing.
func TestSymlinksLeadNowhere(t *testing.T) {
	victim := func(t *testing.T) (dir string, intact func() bool) {
		dir = t.TempDir()
		f := filepath.Join(dir, "T1", "member", "precious")
		must(t, os.MkdirAll(filepath.Dir(f), 0o700))
		must(t, os.WriteFile(f, nil, 0o600))
		return dir, func() bool { return exists(f) }
	}
	t.Run("entry", func(t *testing.T) {
		outside, intact := victim(t)
		dir := t.TempDir()
		l := layout(dir)
		must(t, os.MkdirAll(l.dataRoot(), 0o700))
		must(t, os.Symlink(filepath.Join(outside, "T1"), l.data("T1")))
		must(t, l.removeAll(l.data("T1")))
		if !intact() || exists(l.data("T1")) {
			t.Error("not the link but what it leads to was removed")
		}
	})
	for name, parent := range map[string]func(l layout) string{"data": layout.dataRoot, "trash": layout.trashRoot,
		"staging": layout.stagingRoot, "pki": layout.pkiRoot, "own": layout.own} {
		t.Run(name, func(t *testing.T) {
			outside, intact := victim(t)
			l := layout(t.TempDir())
			link := parent(l)
			must(t, os.MkdirAll(filepath.Dir(link), 0o700))
			if name == "own" {
				must(t, os.MkdirAll(filepath.Join(outside, "staging"), 0o700))
				must(t, os.Rename(filepath.Join(outside, "T1"), filepath.Join(outside, "staging", "T1")))
				intact = func() bool { return exists(filepath.Join(outside, "staging", "T1", "member", "precious")) }
				must(t, os.Symlink(outside, link))
				link = l.stagingRoot()
			} else {
				must(t, os.Symlink(outside, link))
			}
			if err := l.removeAll(filepath.Join(link, "T1")); err == nil || !intact() {
				t.Errorf("removed through a symlink: %v, intact %t", err, intact())
			}
			if err := l.rename(filepath.Join(link, "T1"), l.trash("X")); err == nil || !intact() {
				t.Errorf("renamed through a symlink: %v, intact %t", err, intact())
			}
			if err := l.makeDir(filepath.Join(link, "new")); err == nil || exists(filepath.Join(outside, "new")) {
				t.Errorf("made a directory through a symlink: %v", err)
			}
		})
	}
	t.Run("the data dir itself", func(t *testing.T) {
		real := t.TempDir()
		link := filepath.Join(t.TempDir(), "link")
		must(t, os.Symlink(real, link))
		l := layout(link)
		must(t, l.makeDir(l.data("T1")))
		must(t, l.removeAll(l.data("T1")))
		if exists(filepath.Join(real, "data", "T1")) || !exists(filepath.Join(real, "data")) {
			t.Error("a data dir that is reached by a symlink can't be used")
		}
	})
}
