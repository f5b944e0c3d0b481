package peer

import (
	"bytes"
	"flag"
	"fmt"
	"strings"
	"testing"

	"k8s.io/klog/v2"
)

// TestRepeatedProblems: a source, or a node, that fails in other words each time is logged at most ten times a minute.
func TestRepeatedProblems(t *testing.T) {
	state := klog.CaptureState()
	defer state.Restore()
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(flags)
	_ = flags.Set("logtostderr", "false")
	_ = flags.Set("stderrthreshold", "FATAL")
	for what, fail := range map[string]func(p *Peers, n *node, i int){
		"Discovery from": func(p *Peers, _ *node, i int) {
			p.logSource(namedSource{}, fmt.Errorf("from port %d: refused", i), "before")
		},
		"Not connected": func(_ *Peers, n *node, i int) {
			n.problem = fmt.Sprintf("from port %d: refused", i)
			n.report(true)
		},
	} {
		var log bytes.Buffer
		klog.SetOutput(&log)
		p, n := &Peers{}, &node{id: "b", link: &link{}}
		for i := range 1000 {
			fail(p, n, i)
		}
		klog.Flush()
		if lines := strings.Count(log.String(), what); lines < 1 || lines > 10 {
			t.Errorf("%s: %d lines", what, lines)
		}
	}
}

// namedSource has a name and nothing else.
type namedSource struct{ Source }

// Name implements Source.
func (namedSource) Name() string { return "test" }
