package attention

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestShadowedName has a line in the hosts file, outside the managers' block, that gives a member's name another address. The line is
// named, with its node and its number, the block has the right address all the same, and without the line nobody is needed.
func TestShadowedName(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	file := filepath.Join(t.TempDir(), "hosts")
	const head, line = "127.0.0.1 localhost\n", "127.66.6.6 elsewhere A.internal.example.com # from an older setup\n"
	must(t, os.WriteFile(file, []byte(head+line), 0o644))
	c := harness.New(t, harness.Options{Nodes: 1})
	n := c.Nodes[0]
	// Nothing has to resolve the name of these URLs: the managers dial members by address.
	n.Args = []string{"--dns-suffix=.internal.example.com", "--hosts-file=" + file,
		fmt.Sprintf("--quarantine-client-urls=https://__name__:%d", c.Ports.Quarantine)}
	n.Start()
	c.WaitHealthy(1)
	a := raised(t, c, n, cluster.AttentionNames)
	want := file + " line 2 gives A.internal.example.com the address 127.66.6.6"
	if a.Node != "a" || !strings.Contains(a.Text, want) || !strings.Contains(a.NoCommand, "remove the lines that the message names") {
		t.Errorf("%+v; want %q", a, want)
	}
	data, err := os.ReadFile(file)
	must(t, err)
	text := string(data)
	if !strings.HasPrefix(text, head+line) || !strings.Contains(text, n.Address+"\ta.internal.example.com\n") {
		t.Errorf("the hosts file is\n%s", text)
	}

	if code := n.Term(); code != 0 {
		t.Errorf("the manager exited with %d", code)
	}
	must(t, os.WriteFile(file, []byte(strings.Replace(text, line, "", 1)), 0o644))
	n.Start()
	c.WaitHealthy(1)
	ended(t, c)
}
