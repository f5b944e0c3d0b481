package life

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestUpAndDown goes from 3.4 to 3.7 with one command, and back as far as etcd allows.
func TestUpAndDown(t *testing.T) {
	testutil.Long(t)
	dir := installed(t, "etcd-3.4", "etcd-3.5", "etcd-3.7")
	c := harness.Start(t, harness.Options{Spec: &cluster.Spec{MemberCount: 3, EtcdVersion: "3.4.23"}, Args: args("--etcd-binaries=" + dir)})
	waitVersion(t, c, 3, "3.4.23")
	token := c.OneToken()
	for _, step := range []struct{ what, version string }{
		{"upgrade 3.4 to 3.7", "3.7.3"},
		{"downgrade 3.7 to 3.6", "3.6.16"},
		{"downgrade 3.6 to 3.5", "3.5.35"},
		{"upgrade 3.5 to 3.6", "3.6.16"},
	} {
		measured(t, c, step.what, func() {
			configure(t, c, "--etcd-version="+step.version)
			waitVersion(t, c, 3, step.version)
		})
		if again := c.OneToken(); again != token {
			t.Fatalf("%s: the token was %s and is %s", step.what, token, again)
		}
	}
	c.WaitHealthy(3)
	noneReplaced(t, c)
}

// TestKilledAtEveryStepOfUpgrade goes up two minor versions and down again, and the leader is killed at every step.
func TestKilledAtEveryStepOfUpgrade(t *testing.T) {
	testutil.Long(t)
	dir := installed(t, "etcd-3.5", "etcd-3.7")
	c := harness.Start(t, harness.Options{Spec: &cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.35"}, Args: args("--etcd-binaries=" + dir)})
	waitVersion(t, c, 3, "3.5.35")
	for _, step := range []struct {
		version string
		least   int
	}{{"3.7.3", 6}, {"3.6.16", 4}} {
		measured(t, c, "killed at every step to "+step.version, func() {
			steps := killAtEveryStep(t, c, 5*time.Minute, func() { configure(t, c, "--etcd-version="+step.version) },
				func() string { return running(c, t, 3, step.version) })
			t.Logf("killed at %d steps: %s", len(steps), strings.Join(steps, "; "))
			if len(steps) < step.least {
				t.Errorf("only %d steps were seen; at least %d make the change", len(steps), step.least)
			}
		})
	}
	c.WaitHealthy(3)
	c.OneToken()
	noneReplaced(t, c)
}

// TestPatches changes the patch version in both directions, and back.
func TestPatches(t *testing.T) {
	testutil.Long(t)
	dir := installed(t, "etcd-3.5", "etcd-3.5-old")
	c := harness.Start(t, harness.Options{Spec: &cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.35"}, Args: args("--etcd-binaries=" + dir)})
	waitVersion(t, c, 3, "3.5.35")
	for _, v := range []string{"3.5.21", "3.5.35"} {
		measured(t, c, "patch to "+v, func() {
			configure(t, c, "--etcd-version="+v)
			waitVersion(t, c, 3, v)
		})
	}
	c.WaitHealthy(3)
}

// TestRefusedVersions asks for what can't be done safely. The reason is said, and no etcd is restarted.
func TestRefusedVersions(t *testing.T) {
	testutil.Long(t)
	dir := installed(t, "etcd-3.4", "etcd-3.5-old", "etcd-3.7")
	poor := installed(t, "etcd-3.4", "etcd-3.5-old")
	broken := t.TempDir()
	c := harness.New(t, harness.Options{Spec: &cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.21"}, Args: args("--etcd-binaries=" + dir)})
	c.Nodes[1].Args = []string{"--etcd-binaries=" + poor + "," + broken}
	c.StartAll()
	waitVersion(t, c, 3, "3.5.21")
	for _, tc := range []struct{ version, reason string }{
		{"3.6.16", "3.5.26 or newer before, and node"},
		{"3.7.3", "has no etcd 3.7"},
		{"3.4.23", "etcd has no downgrade from 3.5"},
		{"3.8.0", "only etcd 3.4 to 3.7 are supported"},
		{"2.3.8", "only etcd 3.4 to 3.7 are supported"},
	} {
		c.WaitHealthy(3)
		check := c.Untouched()
		configure(t, c, "--etcd-version="+tc.version)
		c.WaitFor("the reason why there is no "+tc.version, time.Minute, func() string {
			v, err := c.WaitLeader().Status(t.Context())
			if err != nil {
				return err.Error()
			}
			if !v.Alarm || !strings.Contains(v.Doing, tc.reason) || !strings.Contains(v.Doing, tc.version) {
				return v.Doing
			}
			t.Logf("%s: %s", tc.version, v.Doing)
			return ""
		})
		check()
	}
	// An executable that isn't one: nothing that runs is stopped for it.
	configure(t, c, "--etcd-version=3.5.21")
	c.WaitHealthy(3)
	check := c.Untouched()
	harness.WriteFile(t, filepath.Join(broken, "etcd-v3.5.35", "etcd"), "#!/bin/sh\nexit 3\n")
	must(t, os.Chmod(filepath.Join(broken, "etcd-v3.5.35", "etcd"), 0o755))
	install(t, dir, "etcd-3.5")
	c.Nodes[0].Kill() // which also has them look for binaries anew
	c.Nodes[0].Start()
	configure(t, c, "--etcd-version=3.5.35")
	c.WaitFor("the reason why there is no 3.5.35", time.Minute, func() string {
		v, err := c.WaitLeader().Status(t.Context())
		if err != nil || !v.Alarm || !strings.Contains(v.Doing, "node b has no 3.5.35") {
			return v.Doing
		}
		return ""
	})
	c.WaitLog(time.Minute, "can't be run: exit status 3", c.Node("b"))
	check()
}
