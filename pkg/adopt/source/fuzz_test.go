package source

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

func FuzzManifest(f *testing.F) {
	path := filepath.Join(f.TempDir(), "etcd.yaml")
	f.Add([]byte("kind: Pod\nspec:\n  containers:\n  - command: [etcd, --name=a, --data-dir=/var/lib/etcd]\n    volumeMounts: [{name: d, mountPath: /var/lib/etcd}]\n" +
		"  volumes: [{name: d, hostPath: {path: /data}}]\n"))
	f.Add([]byte("spec: {containers: [{command: [etcd, \"" + strings.Repeat(`\x1b`, 3000) + "\"]}]}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Must(t, os.WriteFile(path, data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Cost{Fixed: 4 << 20, PerByte: 5000}, func() error {
			_, err := FromManifest(path)
			return err
		})
	})
}

// FuzzUnit reads a unit and a file of its environment. Variables that are put in many times must not multiply.
func FuzzUnit(f *testing.F) {
	dir := f.TempDir()
	unit := filepath.Join(dir, "etcd.service")
	f.Add("[Service]\nExecStart=/usr/bin/etcd --name ${NAME} $OPTIONS \\\n  --data-dir=/d\nEnvironment=\"NAME=a b\" OPTIONS=--x\nEnvironmentFile=-/none\n", "ETCD_NAME=a\n")
	f.Add("[Service]\nEnvironment=\"A="+strings.Repeat("x ", 5000)+"\"\nExecStart=etcd"+strings.Repeat(" $A", 5000)+"\n", "")
	f.Add("[Service]\nEnvironment=\"A="+strings.Repeat("x", 5000)+"\"\nExecStart=etcd"+strings.Repeat(" -${A}", 5000)+"\n", "")
	f.Add("[Service]\nExecStart=\""+strings.Repeat("\x1b", 5000)+"\n", "\x00")
	f.Add("[Service]\nExecStart=/bin/sh "+strings.Repeat("\x1b", 5000)+"\n", "\x00")
	f.Fuzz(func(t *testing.T, text, env string) {
		if strings.Contains(text, "EnvironmentFile") { // no file of this machine
			text = "[Service]\nEnvironmentFile=" + filepath.Join(dir, "env") + "\n" + strings.ReplaceAll(text, "EnvironmentFile", "")
		}
		testutil.Must(t, os.WriteFile(unit, []byte(text), 0o600))
		testutil.Must(t, os.WriteFile(filepath.Join(dir, "env"), []byte(env), 0o600))
		testutil.Untrusted(t, len(text)+len(env), testutil.Cost{Fixed: 16 << 20, PerByte: 500}, func() error {
			_, err := FromUnit(unit, nil)
			return err
		})
	})
}

func FuzzConfigFile(f *testing.F) {
	path := filepath.Join(f.TempDir(), "config")
	f.Add([]byte("data-dir: /d\nlisten-client-urls: [a, b]\nclient-transport-security: {cert-file: /c, client-cert-auth: true}\n"))
	f.Add([]byte("a: [" + strings.Repeat("x,", 5000) + "]\nb: \"" + strings.Repeat(`\x1b`, 3000) + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Must(t, os.WriteFile(path, data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Cost{Fixed: 4 << 20, PerByte: 5000}, func() error {
			_, err := FromConfigFile(path)
			return err
		})
	})
}
