// Package logtest shows tests what was logged. Only tests import it.
package logtest

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// Lines is what is logged while f runs. No other test of the process may log meanwhile.
func Lines(t testing.TB, f func()) []string {
	t.Helper()
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(fs)
	for k, v := range map[string]string{"logtostderr": "false", "alsologtostderr": "false", "stderrthreshold": "FATAL",
		"one_output": "true"} {
		was := fs.Lookup(k).Value.String()
		defer func() { _ = fs.Set(k, was) }()
		testutil.Must(t, fs.Set(k, v))
	}
	var buf bytes.Buffer
	klog.SetOutput(&buf)
	defer func() {
		klog.SetOutput(os.Stderr)
	}()
	f()
	klog.Flush()
	return strings.FieldsFunc(buf.String(), func(r rune) bool { return r == '\n' })
}
