package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// commandLine is one start of the daemon that must fail.
type commandLine struct {
	what string
	// args are added to those of a start that would work; drop are left out of it, by name.
	args, drop, env []string
	code            int
	// say are the parts that the message must have: the thing, and the way out.
	say []string
}

// runManager starts the daemon and returns what it said and its exit code. One that doesn't end by itself fails the test.
func runManager(t *testing.T, manager string, args, env []string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, manager, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("the manager goes on: %s", out)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// TestBadCommandLines starts the daemon in every wrong way. It says what is wrong and what to do,
// and exits with 2 for what can be told from the flags alone, with 1 for the rest.
func TestBadCommandLines(t *testing.T) {
	p := harness.Build(t)
	dir := t.TempDir()
	cas := filepath.Join(dir, "pki")
	must(t, pki.CreateCAs(cas, time.Now()))
	expired, mixed := filepath.Join(dir, "expired"), filepath.Join(dir, "mixed")
	expiredCAs(t, expired)
	must(t, pki.CreateCAs(mixed, time.Now()))
	ca, err := os.ReadFile(filepath.Join(cas, "etcd-peers-ca.crt"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(mixed, "etcd-peers-ca.crt"), ca, 0o644))
	garbage := filepath.Join(dir, "garbage")
	must(t, pki.CreateCAs(garbage, time.Now()))
	harness.WriteFile(t, filepath.Join(garbage, "etcd-manager-ca.crt"), "this is no certificate")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	takenPort := fmt.Sprint(taken.Addr().(*net.TCPAddr).Port)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	port := fmt.Sprint(free.Addr().(*net.TCPAddr).Port)
	free.Close()
	harness.WriteFile(t, filepath.Join(dir, "bad.env"), "GOOD=1\n\n# comment\nthis line is wrong\n")
	harness.WriteFile(t, filepath.Join(dir, "other", "etcd-manager", "journal.json"), `{"version":1,"clusterName":"somebody-else"}`)
	harness.WriteFile(t, filepath.Join(dir, "future", "etcd-manager", "journal.json"), `{"version":99,"clusterName":"test"}`)
	harness.WriteFile(t, filepath.Join(dir, "badid", "myid"), "two words")
	usual := []string{"--cluster-name=test", "--backup-store=" + filepath.Join(dir, "store"),
		"--data-dir=" + filepath.Join(dir, "data"), "--pki-dir=" + cas, "--grpc-port=" + port}

	for _, tc := range []commandLine{
		{what: "nothing at all", drop: []string{"cluster-name", "backup-store", "data-dir"}, code: 2,
			say: []string{"--cluster-name is missing", "--backup-store is missing", "s3://", "--data-dir is missing"}},
		{what: "unknown flag", args: []string{"--no-such-flag"}, code: 2, say: []string{"no-such-flag"}},
		{what: "argument", args: []string{"start"}, code: 2, say: []string{`"start"`, "--help"}},
		{what: "relative data dir", args: []string{"--data-dir=data"}, code: 2, say: []string{"--data-dir=data", "absolute"}},
		{what: "volume provider", args: []string{"--volume-provider=no-such-cloud"}, code: 2,
			say: []string{"--volume-provider=no-such-cloud"}},
		{what: "volumes of the whole account", args: []string{"--volume-provider=aws"}, code: 2,
			say: []string{"--volume-tag is missing", "kubernetes.io/cluster/"}},
		{what: "two lists of nodes", args: []string{"--volume-provider=aws", "--volume-tag=x",
			`--static-config={"nodes":[{"id":"a","ip":["127.0.0.1"]}]}`}, code: 2,
			say: []string{"--static-config", "--volume-provider=aws"}},
		{what: "encryption that nobody tells of", args: []string{"--require-encrypted-volume"}, code: 2,
			say: []string{"--require-encrypted-volume", "--volume-provider=aws"}},
		{what: "an alias for a key", args: []string{"--require-encrypted-volume=arn:aws:kms:us-east-1:111122223333:alias/x"},
			code: 2, say: []string{"alias", "describe-key"}},
		{what: "two URLs on one port", args: []string{"--client-urls=https://__address__:2380"}, code: 2,
			say: []string{"--client-urls", "--peer-urls", "2380"}},
		{what: "plain http", args: []string{"--client-urls=http://__address__:4001"}, code: 2, say: []string{"http", "--etcd-insecure"}},
		{what: "no URL", args: []string{"--peer-urls=__address__"}, code: 2, say: []string{"--peer-urls", "https://__address__:2380"}},
		{what: "address is a name", args: []string{"--address=master.example.com"}, code: 2,
			say: []string{"--address=master.example.com", "IP address"}},
		{what: "interval", args: []string{"--backup-interval=0s"}, code: 2, say: []string{"--backup-interval", "positive"}},
		{what: "port", args: []string{"--grpc-port=70000"}, code: 2, say: []string{"--grpc-port", "65535"}},
		{what: "retention", env: []string{"ETCD_MANAGER_HOURLY_BACKUPS_RETENTION=a week"}, code: 2,
			say: []string{"ETCD_MANAGER_HOURLY_BACKUPS_RETENTION", "a week"}},
		{what: "certificate life", env: []string{"ETCD_MANAGER_CERT_DURATION=1s"}, code: 2,
			say: []string{"ETCD_MANAGER_CERT_DURATION", "10s"}},
		{what: "no env file", args: []string{"--env-file=" + dir + "/none"}, code: 2, say: []string{"--env-file", dir + "/none"}},
		{what: "bad env file", args: []string{"--env-file=" + dir + "/bad.env"}, code: 2, say: []string{"bad.env", "line 4", "KEY=VALUE"}},
		{what: "static config isn't JSON", args: []string{"--static-config=a,b,c"}, code: 2, say: []string{"--static-config", `"nodes"`}},
		{what: "static config of two", args: []string{`--static-config={"nodes":[{"id":"a","ip":["127.0.0.1"]},{"id":"b","ip":["127.0.0.2"]}]}`}, code: 2, say: []string{"--static-config", "2 nodes", "1, 3, 5"}},
		{what: "static config without us", args: []string{`--static-config={"nodes":[{"id":"a","ip":["10.0.0.1"]}]}`},
			code: 2, say: []string{"--static-config", "127.0.0.1", "--address"}},
		{what: "static config with a typo", args: []string{`--static-config={"node":[]}`}, code: 2,
			say: []string{"--static-config", `"node"`}},
		{what: "static config's version", args: []string{`--static-config={"etcdVersion":"latest","nodes":[{"id":"a","ip":["127.0.0.1"]}]}`}, code: 2, say: []string{"--static-config", "latest"}},
		{what: "store", args: []string{"--backup-store=swift://bucket/x"}, code: 1, say: []string{"--backup-store", "swift", "s3://"}},
		{what: "half a key", args: []string{"--backup-store=s3://bucket/x"}, env: []string{"S3_ACCESS_KEY_ID=x"},
			code: 1, say: []string{"S3_SECRET_ACCESS_KEY"}},
		{what: "address isn't ours", args: []string{"--address=192.0.2.1"}, code: 1,
			say: []string{"--address=192.0.2.1", "isn't an address of this machine"}},
		{what: "port in use", args: []string{"--grpc-port=" + takenPort}, code: 1,
			say: []string{"--grpc-port=" + takenPort, "in use", "another manager"}},
		{what: "no CAs", args: []string{"--pki-dir=" + dir + "/none"}, code: 1, say: []string{"--pki-dir", dir + "/none"}},
		{what: "expired CA", args: []string{"--pki-dir=" + expired}, code: 1, say: []string{"--pki-dir", "-ca.crt", "expired"}},
		{what: "key of another CA", args: []string{"--pki-dir=" + mixed}, code: 1, say: []string{"--pki-dir", "etcd-peers-ca"}},
		{what: "garbage for a CA", args: []string{"--pki-dir=" + garbage}, code: 1, say: []string{"--pki-dir", "etcd-manager-ca.crt"}},
		{what: "data dir of another cluster", args: []string{"--data-dir=" + dir + "/other"}, code: 1,
			say: []string{"somebody-else", `"test"`, "--cluster-name", "--data-dir"}},
		{what: "data dir of a newer version", args: []string{"--data-dir=" + dir + "/future"}, code: 1,
			say: []string{"version 99", "newer"}},
		{what: "bad node id", args: []string{"--data-dir=" + dir + "/badid"}, code: 1, say: []string{"two words", "myid"}},
		{what: "data dir is a file", args: []string{"--data-dir=" + dir + "/bad.env"}, code: 1, say: []string{"--data-dir", "bad.env"}},
	} {
		var args []string
		for _, a := range usual {
			name, _, _ := strings.Cut(strings.TrimPrefix(a, "--"), "=")
			if !strings.Contains(" "+strings.Join(tc.drop, " ")+" ", " "+name+" ") {
				args = append(args, a)
			}
		}
		out, code := runManager(t, p.Manager, append(args, tc.args...), tc.env)
		if code != tc.code {
			t.Errorf("%s: exit code %d, want %d: %s", tc.what, code, tc.code, out)
		}
		for _, s := range tc.say {
			if !strings.Contains(out, s) {
				t.Errorf("%s: the message doesn't say %q: %s", tc.what, s, out)
			}
		}
		if strings.Contains(out, "goroutine ") {
			t.Errorf("%s: it panicked: %s", tc.what, out)
		}
	}
}

// expiredCAs makes CAs that ended yesterday.
func expiredCAs(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{pki.ManagerCA, pki.PeersCA, pki.ClientsCA} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true,
			BasicConstraintsValid: true,
			KeyUsage:              x509.KeyUsageCertSign,
			NotBefore:             time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
		must(t, err)
		k, err := x509.MarshalPKCS8PrivateKey(key)
		must(t, err)
		harness.WriteFile(t, filepath.Join(dir, name+".crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		harness.WriteFile(t, filepath.Join(dir, name+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})))
	}
}
