package database

import (
	"os"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/internal/testutil/etcdtest"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// TestMain makes the test binary what the manager is: able to run as etcd and as the readers of databases.
func TestMain(m *testing.M) {
	if code, ok := child.Dispatch(os.Args[1:], process.EtcdCommand(), CheckCommand(), KeysCommand(), ValuesCommand()); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

const bump = 1_000_000_000

var (
	must      = testutil.Must
	self      = testutil.Self
	ctxOf     = etcdtest.Context
	startOne  = etcdtest.StartOne
	fillStore = etcdtest.Fill
	save      = etcdtest.Save
	liveHash  = etcdtest.LiveHash
)
