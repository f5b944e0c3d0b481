package page

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// answerTime bounds each answer of the browser.
const answerTime = 60 * time.Second

// browser is a Chromium without a window, driven by its own protocol through a pair of pipes.
type browser struct {
	t    *testing.T
	to   io.Writer
	mu   sync.Mutex
	next int
	wait map[int]chan answer
	// events are counted by what they are; violations are what a page was refused.
	loaded     chan struct{}
	requests   int
	violations []string
	session    string
}

type answer struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// startBrowser starts one, with one tab; it ends with the test. Without Chromium the test is skipped.
func startBrowser(t *testing.T) *browser {
	t.Helper()
	program := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		t.Skip("no Chromium is installed: apt-get install chromium, then make test-page")
	}
	ours, theirs, err := os.Pipe()
	must(t, err)
	theirsIn, oursOut, err := os.Pipe()
	must(t, err)
	args := []string{"--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
		"--hide-scrollbars", "--disable-background-networking", "--disable-component-update", "--no-default-browser-check",
		"--user-data-dir=" + t.TempDir()}
	if os.Geteuid() == 0 {
		args = append(args, "--no-sandbox") // it refuses root otherwise
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	cmd.ExtraFiles = []*os.File{theirsIn, theirs}
	var said bytes.Buffer
	cmd.Stderr = &said
	must(t, cmd.Start())
	_, _ = theirsIn.Close(), theirs.Close()
	b := &browser{t: t, to: oursOut, wait: map[int]chan answer{}, loaded: make(chan struct{}, 16)}
	t.Cleanup(func() {
		b.try("Browser.close", nil)
		_ = oursOut.Close()
		if err := cmd.Wait(); err != nil && t.Failed() {
			t.Logf("chromium: %v\n%s", err, said.String())
		}
		_ = ours.Close()
	})
	go b.listen(ours)
	var target struct {
		TargetID  string `json:"targetId"`
		SessionID string `json:"sessionId"`
	}
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &target)
	b.session = target.SessionID
	for _, domain := range []string{"Page", "Log", "Network", "Accessibility", "Runtime"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// listen hands on what the browser says, until it ends.
func (b *browser) listen(from io.Reader) {
	r := bufio.NewReaderSize(from, 1<<20)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var a answer
		if json.Unmarshal(bytes.TrimRight(text, "\x00"), &a) != nil {
			continue
		}
		b.mu.Lock()
		switch {
		case a.ID != 0:
			if c := b.wait[a.ID]; c != nil {
				c <- a
			}
		case a.Method == "Page.loadEventFired":
			b.loaded <- struct{}{}
		case a.Method == "Network.requestWillBeSent":
			b.requests++
		case a.Method == "Log.entryAdded", a.Method == "Runtime.exceptionThrown":
			b.violations = append(b.violations, string(a.Params))
		}
		b.mu.Unlock()
	}
}

// try sends a command and waits for its answer.
func (b *browser) try(method string, params any) (answer, error) {
	c := make(chan answer, 1)
	b.mu.Lock()
	b.next++
	id := b.next
	b.wait[id] = c
	b.mu.Unlock()
	m := map[string]any{"id": id, "method": method}
	if params != nil {
		m["params"] = params
	}
	if b.session != "" && method != "Browser.close" {
		m["sessionId"] = b.session
	}
	text, err := json.Marshal(m)
	if err != nil {
		return answer{}, err
	}
	if _, err := b.to.Write(append(text, 0)); err != nil {
		return answer{}, err
	}
	select {
	case a := <-c:
		if a.Error != nil {
			return a, fmt.Errorf("%s: %s", method, a.Error.Message)
		}
		return a, nil
	case <-time.After(answerTime):
		return answer{}, fmt.Errorf("%s: no answer within %s", method, answerTime)
	}
}

func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	a, err := b.try(method, params)
	must(b.t, err)
	if result != nil {
		must(b.t, json.Unmarshal(a.Result, result))
	}
}

// open loads a page in a size and a color scheme. scale is how many pixels a CSS pixel has, as with a browser's zoom.
func (b *browser) open(url string, width, height int, scale float64, scheme string) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride",
		map[string]any{"width": width, "height": height, "deviceScaleFactor": scale, "mobile": false}, nil)
	b.call("Emulation.setEmulatedMedia",
		map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.mu.Lock()
	b.requests, b.violations = 0, nil
	b.mu.Unlock()
	b.call("Page.navigate", map[string]any{"url": url}, nil)
	select {
	case <-b.loaded:
	case <-time.After(answerTime):
		b.t.Fatalf("%s isn't loaded", url)
	}
}

// eval runs a script in the page, whatever its policy says, and reads its result.
func (b *browser) eval(script string, result any) {
	b.t.Helper()
	var r struct {
		Result struct {
			Value json.RawMessage `json:"value"`
		} `json:"result"`
		Exception *struct {
			Exception struct {
				Description string `json:"description"`
			} `json:"exception"`
		} `json:"exceptionDetails"`
	}
	b.call("Runtime.evaluate", map[string]any{"expression": script, "returnByValue": true}, &r)
	if r.Exception != nil {
		b.t.Fatalf("script: %s", r.Exception.Exception.Description)
	}
	if result != nil {
		must(b.t, json.Unmarshal(r.Result.Value, result))
	}
}

// picture is the whole page as PNG.
func (b *browser) picture() []byte {
	b.t.Helper()
	var r struct {
		Data []byte `json:"data"`
	}
	b.call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}, &r)
	return r.Data
}

// press presses a key.
func (b *browser) press(key string, code int) {
	b.t.Helper()
	for _, kind := range []string{"rawKeyDown", "keyUp"} {
		p := map[string]any{"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
		b.call("Input.dispatchKeyEvent", p, nil)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
