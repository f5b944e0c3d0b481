package servers

import (
	"os/exec"
	"strings"
	"testing"
)

// TestVersions checks that every etcd program is what its name says. It builds them all.
func TestVersions(t *testing.T) {
	if testing.Short() {
		t.Skip("builds all programs")
	}
	for name, want := range map[string]string{
		"etcd-3.4": "etcd Version: 3.4.", "etcd-3.5": "etcd Version: 3.5.35", "etcd-3.5-old": "etcd Version: 3.5.21", "etcd-3.6": "etcd Version: 3.6.16", "etcd-3.7": "etcd Version: 3.7.3",
		"etcdctl-3.5": "etcdctl version: 3.5.35", "etcdutl-3.5": "etcdutl version: 3.5.35", "etcdctl-3.6": "etcdctl version: 3.6.16", "etcdutl-3.6": "etcdutl version: 3.6.16",
	} {
		t.Run(name, func(t *testing.T) {
			arg := "version"
			if strings.HasPrefix(name, "etcd-") {
				arg = "--version"
			}
			out, err := exec.Command(Binary(t, name), arg).CombinedOutput()
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("%s %s = %s, %v; want %q", name, arg, out, err, want)
			}
		})
	}
}
