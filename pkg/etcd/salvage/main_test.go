package salvage

import (
	"os"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/internal/testutil/etcdtest"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// TestMain makes the test binary what the manager is, and two processes that a test kills.
func TestMain(m *testing.M) {
	if code, ok := child.Dispatch(os.Args[1:], process.EtcdCommand(), database.CheckCommand(), datadir.StageCommand(), Command()); ok {
		os.Exit(code)
	}
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "salvage-and-hang":
			salvageAndHang(os.Args[2:])
		case "etcd-and-hang":
			etcdAndHang(os.Args[2:])
		}
	}
	os.Exit(m.Run())
}

type testMember = etcdtest.Member

var (
	must          = testutil.Must
	self          = testutil.Self
	eventually    = testutil.Eventually
	ctxOf         = etcdtest.Context
	builtin       = etcdtest.Builtin
	makeMembers   = etcdtest.Members
	startAll      = etcdtest.StartAll
	startOne      = etcdtest.StartOne
	fillStore     = etcdtest.Fill
	otherBinaries = etcdtest.OtherBinaries
	dirState      = etcdtest.DirState
	putRequest    = etcdtest.PutRequest
)
