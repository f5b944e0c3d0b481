package client_test

import (
	"os"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/internal/testutil/etcdtest"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// TestMain makes the test binary able to run as etcd.
func TestMain(m *testing.M) {
	if code, ok := child.Dispatch(os.Args[1:], process.EtcdCommand()); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

type testMember = etcdtest.Member

var (
	must          = testutil.Must
	eventually    = testutil.Eventually
	ctxOf         = etcdtest.Context
	builtin       = etcdtest.Builtin
	newPKI        = etcdtest.NewPKI
	makeMembers   = etcdtest.Members
	startAll      = etcdtest.StartAll
	startOne      = etcdtest.StartOne
	otherBinaries = etcdtest.OtherBinaries
)
