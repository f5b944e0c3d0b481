package servers

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// GCS is a running fake-gcs-server on loopback with one empty bucket, behind a front that may answer itself. It ends with the test.
type GCS struct {
	// Endpoint is the URL that clients use.
	Endpoint string
	// Bucket is the bucket that was made.
	Bucket string

	mu     sync.Mutex
	answer func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool
}

// StartGCS starts fake-gcs-server with its objects in memory. versioned makes the bucket keep versions.
func StartGCS(t testing.TB, versioned bool) *GCS {
	t.Helper()
	binary := Binary(t, "fake-gcs-server")
	g := &GCS{Bucket: "backups"}
	var target *url.URL
	pass := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // The URLs of uploads are made of it.
	}}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		answer := g.answer
		g.mu.Unlock()
		if answer == nil || !answer(w, r, pass) {
			pass.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(front.Close)
	g.Endpoint = front.URL
	logFile := filepath.Join(t.TempDir(), "log")
	var err error
	for range 5 { // The port is free when it is chosen, and may be taken when it is used.
		addr := freeAddress(t, "127.0.0.1")
		target = &url.URL{Scheme: "http", Host: addr}
		_, port, _ := strings.Cut(addr, ":")
		cmd := exec.Command(binary, "-backend=memory", "-scheme=http", "-host=127.0.0.1", "-port="+port, "-external-url="+front.URL,
			"-public-host="+strings.TrimPrefix(front.URL, "http://"), "-log-level=error", "-data=/nonexistent")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, oerr := os.Create(logFile)
		if oerr != nil {
			t.Fatal(oerr)
		}
		cmd.Stdout, cmd.Stderr = out, out
		exited := make(chan struct{})
		if err = startOnThread(cmd, exited); err != nil {
			t.Fatalf("start fake-gcs-server: %v", err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // it may have ended already
			<-exited
			out.Close()
		})
		if err = g.makeBucket(target.String(), versioned, exited); err == nil {
			return g
		}
	}
	log, _ := os.ReadFile(logFile)
	t.Fatalf("start fake-gcs-server: %v\n%s", err, log)
	return nil
}

// makeBucket waits until the server answers, too.
func (g *GCS) makeBucket(server string, versioned bool, exited chan struct{}) error {
	body, err := json.Marshal(map[string]any{"name": g.Bucket, "versioning": map[string]bool{"enabled": versioned}})
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(startTimeout); ; {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		req, rerr := http.NewRequestWithContext(ctx, http.MethodPost, server+"/storage/v1/b?project=test", strings.NewReader(string(body)))
		if rerr != nil {
			cancel()
			return rerr
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		cancel()
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("make the bucket: %s", resp.Status)
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

// Set has answer asked first from now on: true says that it has answered. nil lets everything through.
func (g *GCS) Set(answer func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answer = answer
}

// Getenv looks up the variables with which the project's programs reach the server.
func (g *GCS) Getenv(name string) string {
	if name == "STORAGE_EMULATOR_HOST" {
		return g.Endpoint
	}
	return ""
}

// URL returns the URL of a prefix in the bucket.
func (g *GCS) URL(prefix string) string { return "gs://" + g.Bucket + "/" + prefix }
