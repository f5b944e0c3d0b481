package process_test

import (
	"os"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/internal/testutil/etcdtest"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// TestMain makes the test binary able to run as etcd, and as a manager that dies.
func TestMain(m *testing.M) {
	if code, ok := child.Dispatch(os.Args[1:], process.EtcdCommand()); ok {
		os.Exit(code)
	}
	if len(os.Args) > 1 && os.Args[1] == "launch-and-die" {
		launchAndDie(os.Args[2:])
	}
	os.Exit(m.Run())
}

type testMember = etcdtest.Member

var (
	must        = testutil.Must
	eventually  = testutil.Eventually
	ctxOf       = etcdtest.Context
	builtin     = etcdtest.Builtin
	makeMembers = etcdtest.Members
	self        = testutil.Self
)
