package servers

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// startTimeout is how long a server may take until it answers.
const startTimeout = 60 * time.Second

// S3Option changes how an S3 server is started.
type S3Option func(*s3Options)

// InMemory keeps the server's data in memory where the machine has room and a file system for that. It spares
// tests with thousands of small objects the syncing; not for large data.
func InMemory() S3Option { return func(o *s3Options) { o.memory = true } }

type s3Options struct {
	versioned, tls, memory bool
	host                   string
}

// At has the server listen on an address of this machine's other than 127.0.0.1.
func At(host string) S3Option { return func(o *s3Options) { o.host = host } }

// Versioned makes the bucket keep versions.
func Versioned() S3Option { return func(o *s3Options) { o.versioned = true } }

// TLS makes the server speak https with a certificate of a private CA, S3.CAFile.
func TLS() S3Option { return func(o *s3Options) { o.tls = true } }

// S3 is a running S3 server on loopback with one empty bucket. It ends with the test.
type S3 struct {
	// Endpoint is the server's URL.
	Endpoint string
	// Region, AccessKeyID and SecretAccessKey are what a client must use, with path-style addressing.
	Region, AccessKeyID, SecretAccessKey string
	// Bucket is the bucket that was made.
	Bucket string
	// CAFile holds the server's CA, with the option TLS.
	CAFile string
	// DataDir is the directory with the server's data. Of versitygw each object is a file Bucket/key in it.
	DataDir string
	// Log is the file with the server's output.
	Log string

	t       testing.TB
	command func(addr, dir string) *exec.Cmd
	addr    string
	dir     string
	mu      sync.Mutex
	cmd     *exec.Cmd
	exited  chan struct{}
}

// StartVersityGW starts versitygw on a temporary directory.
func StartVersityGW(t testing.TB, opts ...S3Option) *S3 {
	t.Helper()
	binary := Binary(t, "versitygw")
	return start(t, opts, func(s *S3, o s3Options) func(addr, dir string) *exec.Cmd {
		return func(addr, dir string) *exec.Cmd {
			args := []string{"--port", addr, "--region", s.Region, "--quiet", "--health", "/health"}
			if o.tls {
				args = append(args, "--cert", filepath.Join(dir, "certs", "public.crt"), "--key",
					filepath.Join(dir, "certs", "private.key"))
			}
			args = append(args, "posix")
			if o.versioned {
				args = append(args, "--versioning-dir", mkdir(t, dir, "versions"))
			}
			cmd := exec.Command(binary, append(args, mkdir(t, dir, "data"))...)
			cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.AccessKeyID, "ROOT_SECRET_KEY="+s.SecretAccessKey)
			return cmd
		}
	})
}

// StartMinIO starts MinIO on a temporary directory. It has a static KMS key, so SSE-KMS works with it.
func StartMinIO(t testing.TB, opts ...S3Option) *S3 {
	t.Helper()
	binary := Binary(t, "minio")
	return start(t, opts, func(s *S3, _ s3Options) func(addr, dir string) *exec.Cmd {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // Never fails.
		return func(addr, dir string) *exec.Cmd {
			cmd := exec.Command(binary, "server", "--quiet", "--address", addr, "--console-address", "127.0.0.1:0",
				"--certs-dir", mkdir(t, dir, "certs"), mkdir(t, dir, "data"))
			cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+s.AccessKeyID, "MINIO_ROOT_PASSWORD="+s.SecretAccessKey,
				"MINIO_REGION="+s.Region,
				"MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CI_CD=1",
				"MINIO_KMS_SECRET_KEY=test-key:"+base64.StdEncoding.EncodeToString(key))
			return cmd
		}
	})
}

func mkdir(t testing.TB, elem ...string) string {
	dir := filepath.Join(elem...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func start(t testing.TB, opts []S3Option, newCommand func(*S3, s3Options) func(addr, dir string) *exec.Cmd) *S3 {
	t.Helper()
	var o s3Options
	for _, opt := range opts {
		opt(&o)
	}
	dir := t.TempDir()
	if o.memory {
		dir = memoryDir(t, dir)
	}
	s := &S3{Region: "us-east-1", AccessKeyID: "test" + rand.Text()[:12], SecretAccessKey: rand.Text(),
		Bucket: "backups", DataDir: filepath.Join(dir, "data"), Log: filepath.Join(dir, "log"), t: t, dir: dir}
	if o.tls {
		s.CAFile = makeCerts(t, mkdir(t, dir, "certs"))
	}
	s.command = newCommand(s, o)
	t.Cleanup(s.Stop)
	var err error
	// The port is free when it is chosen, and may be taken when it is used; then the server ends and another port is tried.
	for range 5 {
		s.addr = freeAddress(t, cmp.Or(o.host, "127.0.0.1"))
		s.Endpoint = "http://" + s.addr
		if o.tls {
			s.Endpoint = "https://" + s.addr
		}
		if err = s.run(); err == nil {
			s.makeBucket(o.versioned)
			return s
		}
		s.Stop()
	}
	log, _ := os.ReadFile(s.Log)
	t.Fatalf("start S3 server: %v\n%s", err, log)
	return nil
}

// memoryDir returns a new directory in memory, or fallback.
func memoryDir(t testing.TB, fallback string) string {
	const shm, enough = "/dev/shm", 2 << 30
	var st syscall.Statfs_t
	if err := syscall.Statfs(shm, &st); err != nil || int64(st.Bavail)*st.Bsize < enough {
		return fallback
	}
	dir, err := os.MkdirTemp(shm, "etcd-manager-test-")
	if err != nil {
		return fallback
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// versitygw keeps metadata in extended attributes.
	if err := syscall.Setxattr(dir, "user.test", []byte("x"), 0); err != nil {
		return fallback
	}
	return dir
}

func freeAddress(t testing.TB, host string) string {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Start starts the server again after Stop, with the same address and data, and waits until it answers.
func (s *S3) Start() {
	s.t.Helper()
	if err := s.run(); err != nil {
		s.t.Fatalf("start S3 server again: %v", err)
	}
}

// Stop kills the server, if it runs, and waits for its end.
func (s *S3) Stop() {
	s.mu.Lock()
	cmd, exited := s.cmd, s.exited
	s.cmd = nil
	s.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(syscall.SIGCONT) // If it has ended already there is nothing to do.
	_ = cmd.Process.Kill()
	<-exited
}

// Pause freezes the server: connections are accepted by the kernel, and nothing answers. All its threads are frozen when it returns.
func (s *S3) Pause() {
	s.t.Helper()
	s.signal(syscall.SIGSTOP)
	s.mu.Lock()
	pid := s.cmd.Process.Pid
	s.mu.Unlock()
	for deadline := time.Now().Add(10 * time.Second); !frozen(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("the S3 server (pid %d) goes on 10s after SIGSTOP", pid)
		}
	}
}

// frozen tells whether every thread of a process has stopped. A signal only asks for it.
func frozen(pid int) bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(stats) == 0 {
		return false
	}
	for _, f := range stats {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		if _, rest, _ := strings.Cut(string(data), ") "); !strings.HasPrefix(rest, "T") {
			return false
		}
	}
	return true
}

// Resume ends Pause.
func (s *S3) Resume() { s.signal(syscall.SIGCONT) }

func (s *S3) signal(sig syscall.Signal) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		s.t.Fatalf("signal S3 server: it is stopped")
	}
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("signal S3 server: %v", err)
	}
}

func (s *S3) run() error {
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.command(s.addr, s.dir)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	// A test binary that is killed takes its server along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// Pdeathsig is tied to the thread that starts the process, so that thread has to live on: see startOnThread.
	exited := make(chan struct{})
	if err := startOnThread(cmd, exited); err != nil {
		return err
	}
	s.mu.Lock()
	s.cmd, s.exited = cmd, exited
	s.mu.Unlock()
	return s.waitReady(exited)
}

// waitReady waits until a client with this server's own credentials gets an answer.
func (s *S3) waitReady(exited chan struct{}) error {
	deadline := time.Now().Add(startTimeout)
	client := s.Client()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		_, err := client.ListBuckets(ctx, &awss3.ListBucketsInput{}, func(o *awss3.Options) { o.Retryer = aws.NopRetryer{} })
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("the server ended: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server does not answer: %w", err)
		}
	}
}

// Client returns a client of the AWS SDK with all rights, for looking behind the scenes.
func (s *S3) Client() *awss3.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: 10 * time.Second}
	if s.CAFile != "" {
		pool := x509.NewCertPool()
		data, err := os.ReadFile(s.CAFile)
		if err != nil || !pool.AppendCertsFromPEM(data) {
			s.t.Fatalf("read CA file %s: %v", s.CAFile, err)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return awss3.New(awss3.Options{
		BaseEndpoint: &s.Endpoint, Region: s.Region, UsePathStyle: true, HTTPClient: &http.Client{Transport: transport},
		Credentials: credentials.NewStaticCredentialsProvider(s.AccessKeyID, s.SecretAccessKey, ""),
	})
}

func (s *S3) makeBucket(versioned bool) {
	s.t.Helper()
	client := s.Client()
	ctx := context.Background()
	if _, err := client.CreateBucket(ctx, &awss3.CreateBucketInput{Bucket: &s.Bucket}); err != nil {
		s.t.Fatalf("create bucket: %v", err)
	}
	if versioned {
		_, err := client.PutBucketVersioning(ctx, &awss3.PutBucketVersioningInput{Bucket: &s.Bucket,
			VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled}})
		if err != nil {
			s.t.Fatalf("turn versions on: %v", err)
		}
	}
}

// Env returns the variables with which the project's programs reach the server, as KEY=VALUE.
func (s *S3) Env() []string {
	env := []string{"S3_ENDPOINT=" + s.Endpoint, "S3_REGION=" + s.Region, "S3_ACCESS_KEY_ID=" + s.AccessKeyID,
		"S3_SECRET_ACCESS_KEY=" + s.SecretAccessKey}
	if s.CAFile != "" {
		env = append(env, "S3_CA_FILE="+s.CAFile)
	}
	return env
}

// Getenv looks a variable of Env up.
func (s *S3) Getenv(name string) string {
	for _, kv := range s.Env() {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// URL returns the URL of a prefix in the bucket.
func (s *S3) URL(prefix string) string { return "s3://" + s.Bucket + "/" + prefix }

// makeCerts writes public.crt, private.key and the CA, whose path it returns.
func makeCerts(t testing.TB, dir string) string {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("make certificates: %v", err)
		}
	}
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	ca := template("test CA")
	ca.IsCA, ca.KeyUsage = true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	check(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	leaf := template("S3 server")
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	check(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(err)
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		var b bytes.Buffer
		check(pem.Encode(&b, &pem.Block{Type: kind, Bytes: der}))
		check(os.WriteFile(path, b.Bytes(), 0o600))
		return path
	}
	write("public.crt", "CERTIFICATE", leafDER)
	write("private.key", "PRIVATE KEY", keyDER)
	return write("ca.crt", "CERTIFICATE", caDER)
}
