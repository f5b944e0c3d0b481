package putback

import (
	"bytes"
	"context"
	"fmt"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	etcdclient "github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// anEtcd starts one without TLS.
func anEtcd(t *testing.T) (*etcdclient.Client, string) {
	t.Helper()
	port := func() string {
		for range 100 { // below the range from which the kernel takes ports for connections
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12000+rand.Intn(20000)))
			if err == nil {
				defer l.Close()
				return "http://" + l.Addr().String()
			}
		}
		t.Fatal("no free port")
		return ""
	}
	client, peer := port(), port()
	cmd, err := process.Command(etcd.Config{
		Name: "m", Token: "t", NewCluster: true, DataDir: filepath.Join(t.TempDir(), "data"), PeerURLs: []string{peer},
		ListenPeerURLs: []string{peer},
		ClientURLs:     []string{client}, ListenClientURLs: []string{client},
		InitialCluster: []etcd.Peer{{Name: "m", PeerURLs: []string{peer}}},
		Heartbeat:      50 * time.Millisecond, ElectionTimeout: 500 * time.Millisecond,
	}, process.Binary{Version: "3.6.16", Path: servers.Binary(t, "etcd-3.6")})
	must(t, err)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	must(t, err)
	defer log.Close()
	p, err := process.Start(cmd, process.StartOptions{PIDFile: filepath.Join(t.TempDir(), "pid"), Stdout: log, Stderr: log})
	must(t, err)
	t.Cleanup(func() { _, _ = p.Stop(context.Background(), 0) }) // it is a test's own
	c, err := etcdclient.Dial([]string{client}, nil)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		h := c.Health(ctx)
		cancel()
		if h.Healthy {
			return c, client
		}
		if time.Now().After(deadline) {
			t.Fatalf("etcd doesn't serve: %s", h.Reason)
		}
	}
}

// TestPutBackAnything puts back keys and values of any bytes, with the etcdctl of more than one
// version, leaves alone what is there, and stops with an error where etcd doesn't answer.
func TestPutBackAnything(t *testing.T) {
	testutil.Long(t)
	every := make([]byte, 0, 256)
	for c := range 256 {
		every = append(every, byte(c))
	}
	values := []*mvccpb.KeyValue{
		{Key: []byte("/plain"), Value: []byte("x")},
		{Key: []byte("/empty")},
		{Key: []byte("-dash"), Value: []byte("-value")},
		{Key: []byte("--prefix"), Value: []byte("x")},
		{Key: []byte("--")},
		{Key: []byte("/nul\x00in it"), Value: []byte("a\x00b\n")},
		{Key: []byte("/nul"), Value: []byte("the one that a key cut at its NUL would be")},
		{Key: []byte("\x00")},
		{Key: []byte("-\x00\"'\\)"), Value: every},
		{Key: []byte("/two\nlines\n"), Value: []byte("two\nlines\n\n")},
		{Key: []byte(`/"double" 'single' \back $HOME ` + "`id` *"), Value: []byte(`'"$x\`)},
		{Key: []byte("/not utf-8 \xff\xfe"), Value: every},
		{Key: every, Value: bytes.Repeat(every, 400)},
		{Key: every[1:], Value: []byte("all but NUL")},
		{Key: []byte("/large"), Value: bytes.Repeat([]byte{0}, 1<<20)},
		{Key: []byte("END"), Value: []byte("END")},
		{Key: []byte("\x00\nEND\n"), Value: []byte("\nEND\n")},
	}
	for _, version := range []string{"3.6", "3.5"} {
		t.Run(version, func(t *testing.T) {
			client, url := anEtcd(t)
			etcdctl := servers.Binary(t, "etcdctl-"+version)
			dir := filepath.Join(t.TempDir(), "-out")
			must(t, os.Mkdir(dir, 0o700))
			must(t, writeValues(dir, &changelog.Extracted{Plan: &changelog.Plan{}, Values: values}))
			run := func(endpoint string) (string, error) {
				cmd := exec.CommandContext(t.Context(), "sh", "-e", "./put-back.sh")
				cmd.Dir = dir
				cmd.Env = []string{"PATH=" + os.Getenv("PATH"),
					"ETCDCTL=" + etcdctl + " --dial-timeout=1s --command-timeout=5s", "ETCDCTL_ENDPOINTS=" + endpoint}
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			if out, err := run("http://127.0.0.1:1"); err == nil || strings.Contains(out, "exists") ||
				strings.Contains(out, "brought back") {
				t.Errorf("without an etcd: %v\n%s", err, out)
			}
			out, err := run(url)
			if err != nil || strings.Count(out, "brought back") != len(values) {
				t.Fatalf("%v\n%.2000q", err, out)
			}
			r, err := client.Raw().Get(t.Context(), "\x00", clientv3.WithFromKey())
			must(t, err)
			have := map[string][]byte{}
			for _, kv := range r.Kvs {
				have[string(kv.Key)] = kv.Value
			}
			for _, kv := range values {
				if v, ok := have[string(kv.Key)]; !ok || !bytes.Equal(v, kv.Value) {
					t.Errorf("%.60q is there: %t, with %d bytes, want %d", kv.Key, ok, len(v), len(kv.Value))
				}
			}
			if len(have) != len(values) {
				t.Errorf("%d keys, want %d", len(have), len(values))
			}
			for _, kv := range values {
				_, err := client.Raw().Put(t.Context(), string(kv.Key), "newer")
				must(t, err)
			}
			if out, err := run(url); err != nil || strings.Count(out, "exists, left alone") != len(values) {
				t.Errorf("a second time: %v\n%.2000q", err, out)
			}
			r, err = client.Raw().Get(t.Context(), "\x00", clientv3.WithFromKey())
			must(t, err)
			for _, kv := range r.Kvs {
				if string(kv.Value) != "newer" {
					t.Errorf("%q was overwritten", kv.Key)
				}
			}
		})
	}
}
