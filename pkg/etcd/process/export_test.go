package process

import "github.com/etcd-manager/etcd-manager/internal/testutil"

var (
	must = testutil.Must
	self = testutil.Self
)

// What the tests with whole etcds see of the inside.
var (
	BootID        = bootID
	EnvName       = envName
	OverheardFile = overheardFile
)

// StartTicks is when a process was started.
func StartTicks(pid int) (uint64, error) {
	st, err := readStat(pid)
	return st.startTicks, err
}

// Heard tells whether what a process says is handed on.
func Heard(p *Process) bool { return p.heard.Load() != nil }
