package datadir

import (
	"os"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/internal/testutil/etcdtest"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// TestMain makes the test binary what the manager is: able to run as etcd and as the checkers.
func TestMain(m *testing.M) {
	if code, ok := child.Dispatch(os.Args[1:], process.EtcdCommand(), database.CheckCommand(), StageCommand()); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

const bump = 1_000_000_000

type testMember = etcdtest.Member

var (
	must          = testutil.Must
	self          = testutil.Self
	eventually    = testutil.Eventually
	ctxOf         = etcdtest.Context
	builtin       = etcdtest.Builtin
	newPKI        = etcdtest.NewPKI
	makeMembers   = etcdtest.Members
	startAll      = etcdtest.StartAll
	startOne      = etcdtest.StartOne
	fillStore     = etcdtest.Fill
	save          = etcdtest.Save
	liveHash      = etcdtest.LiveHash
	otherBinaries = etcdtest.OtherBinaries
	dirState      = etcdtest.DirState
	putRequest    = etcdtest.PutRequest
)
