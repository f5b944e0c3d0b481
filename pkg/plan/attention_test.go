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
		"nothing":         {"", nil},
		"store":           {"store away\n", []string{"store-away a -"}},
		"quorum":          {"node b down 2m\nnode c down 2m\n", []string{"quorum-lost - recover --from-survivor"}},
		"quorum, store":   {"node b down 2m\nnode c down 2m\nstore away\n", []string{"quorum-lost - recover --from-survivor", "store-away a -"}},
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
