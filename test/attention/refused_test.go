package attention

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// faulty builds a manager with a fault: its plan and its safety check disagree about backups. No input can bring that about.
func faulty(t *testing.T) string {
	t.Helper()
	const head = "func Check(o *model.Observation, a model.Action, p model.Policy) error {\n"
	root, err := filepath.Abs("../..")
	must(t, err)
	source := filepath.Join(root, "pkg", "plan", "safety", "check.go")
	data, err := os.ReadFile(source)
	must(t, err)
	if strings.Count(string(data), head) != 1 {
		t.Fatalf("%s has no %q any more", source, head)
	}
	dir := t.TempDir()
	changed := filepath.Join(dir, "check.go")
	must(t, os.WriteFile(changed, []byte(strings.Replace(string(data), head, head+
		"\tif _, ok := a.(model.TakeBackup); ok {\n\t\treturn fmt.Errorf(\"a fault made for a test\")\n\t}\n", 1)), 0o600))
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {source: changed}})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600))
	cmd := exec.CommandContext(t.Context(), "go", "build", "-overlay="+filepath.Join(dir, "overlay.json"), "-o",
		filepath.Join(dir, "etcd-manager"), "./cmd/etcd-manager")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return filepath.Join(dir, "etcd-manager")
}

// TestRefused runs a manager whose safety check refuses what its plan wants.
func TestRefused(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	s := &scene{t: t, c: harness.New(t, harness.Options{Nodes: 1, Args: quick()})}
	s.play(refusedRows())
	s.c.WaitBackups(1)
}

// refusedRows are played before there is a cluster.
func refusedRows() []row {
	return []row{{
		kind: cluster.AttentionSafety, what: "plan and safety check of the program disagree",
		text: []string{"refused by the safety check", "a fault made for a test", "there is no backup yet"},
		cause: func(s *scene) {
			right := s.c.Programs.Manager
			s.c.Programs.Manager = faulty(s.t)
			s.a().Start()
			s.back = func() {
				s.a().Kill()
				s.c.Programs.Manager = right
				s.a().Start()
			}
		},
		none: "this is a bug of the program", mend: (*scene).bringBack,
	}}
}
