package plan

import (
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// incomplete says what an attention lacks; "" if nothing.
func incomplete(a cluster.Attention) string {
	switch {
	case a.Kind == "" || a.Text == "":
		return "ATTENTION without a kind or a sentence\n"
	case (a.Command == "") == (a.NoCommand == ""):
		return "ATTENTION without a way to end it\n"
	}
	return ""
}

// TestAttentions shows worlds in which a person is needed for more than one thing.
func TestAttentions(t *testing.T) {
	for name, c := range map[string]struct {
		world string
		want  []string // kind, node, command, in order
	}{
		"nothing": {"", nil},
		"store":   {"store away\n", []string{"store-away a -"}},
		"quorum":  {"node b down 2m\nnode c down 2m\n", []string{"quorum-lost - recover --from-survivor"}},
		"quorum, store": {"node b down 2m\nnode c down 2m\nstore away\n",
			[]string{"quorum-lost - recover --from-survivor", "store-away a -"}},
		"another cluster": {"marker formed token=T9\n", []string{"two-clusters - confirm-cluster T1"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			for line := range strings.Lines("cluster a b c\n" + c.world) {
				if _, err := w.do(strings.Fields(line)); err != nil {
					t.Fatal(err)
				}
			}
			o, spec := w.observe()
			var got []string
			for _, a := range Attentions(o, spec, w.p, Next(o, spec, w.p)) {
				if lacks := incomplete(a); lacks != "" {
					t.Errorf("%+v: %s", a, lacks)
				}
				node, command := string(a.Node), strings.TrimPrefix(a.Command, ctl)
				if node == "" {
					node = "-"
				}
				if command == "" {
					command = "-"
				}
				got = append(got, string(a.Kind)+" "+node+" "+command)
			}
			if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestFailingBackups: one or two backups that fail end by themselves; from the third on a person is
// told, until one succeeds. While the store is away that is what is said.
func TestFailingBackups(t *testing.T) {
	w := newWorld()
	if _, err := w.do(strings.Fields("cluster a b c")); err != nil {
		t.Fatal(err)
	}
	o, spec := w.observe()
	for _, c := range []struct {
		failures int
		store    string
		want     string
	}{{0, "", ""}, {2, "", ""}, {3, "", "The last 3 backups failed: no room"}, {4, "no answer", ""}} {
		o.BackupFailures, o.BackupError, o.Store.Error = c.failures, "no room", c.store
		got := ""
		for _, a := range Attentions(o, spec, w.p, Next(o, spec, w.p)) {
			if a.Kind == cluster.AttentionBackup {
				got = a.Text
			}
		}
		if got != c.want {
			t.Errorf("%d failures, store %q: %q, want %q", c.failures, c.store, got, c.want)
		}
	}
}

// TestRaiseQuota: the quota that is advised is one that can be set.
func TestRaiseQuota(t *testing.T) {
	const set = ctl + "configure-cluster --set=quota-backend-bytes="
	for quota, want := range map[int64]string{
		0: set + "4GiB", 16 << 20: set + "4GiB", 2 << 30: set + "4GiB", 8 << 30: set + "16GiB", 40 << 30: set + "64GiB", 64 << 30: "",
	} {
		got := raiseQuota(quota)
		if got != want {
			t.Errorf("a quota of %d: %q, want %q", quota, got, want)
		}
		if value, ok := strings.CutPrefix(got, set); ok {
			if _, err := cluster.ParseSetting(cluster.SettingQuota, value); err != nil {
				t.Errorf("a quota of %d: %v", quota, err)
			}
		}
	}
}
