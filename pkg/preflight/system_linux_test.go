package preflight

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

func TestMounts(t *testing.T) {
	m, ok := parseMount(`98 30 0:51 / /mnt/my\040backups rw,relatime shared:52 - nfs4 server:/x rw,vers=4.2,local_lock=none`)
	if !ok || m.point != "/mnt/my backups" || m.kind != "nfs4" || localLocks(m.options) {
		t.Errorf("%+v %v", m, ok)
	}
	for options, local := range map[string]bool{"rw,nolock": true, "local_lock=all,rw": true, "rw,local_lock=flock": true, "rw": false,
		"rw,local_lock=posix": false} {
		if localLocks(options) != local {
			t.Errorf("%s: %v", options, !local)
		}
	}
	if _, ok := parseMount("rubbish"); ok {
		t.Error("rubbish is a mount")
	}
	if m := mountOf("/proc/self"); m.kind != "proc" {
		t.Skipf("/proc is %+v", m)
	}
}

// TestHolder finds this process by a port that it listens on.
func TestHolder(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testutil.Must(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	testutil.Must(t, err)
	if p := holder(port); p.id != os.Getpid() || p.name != filepath.Base(testutil.Self(t)) {
		t.Errorf("port %s is held by %+v", port, p)
	}
	if p := holder(fmt.Sprint(testutil.FreePort(t))); p.id != 0 {
		t.Errorf("a free port is held by %+v", p)
	}
}
