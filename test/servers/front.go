package servers

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
)

// Front stands between clients and a server, and may answer itself. It returns the URL that the clients are to use. It ends with the test.
func Front(t testing.TB, srv *S3, intercept func(w http.ResponseWriter, r *http.Request, pass http.Handler)) string {
	t.Helper()
	target, err := url.Parse(srv.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	pass := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // It is part of the signature.
	}}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { intercept(w, r, pass) }))
	t.Cleanup(front.Close)
	return front.URL
}

// Gate is a front whose manners can be changed while clients use it.
type Gate struct {
	// URL is what clients use in place of the server's.
	URL string

	mu     sync.Mutex
	answer func(w http.ResponseWriter, r *http.Request) bool
	lose   func(r *http.Request) bool
}

// NewGate puts a gate that lets everything through before a server.
func NewGate(t testing.TB, srv *S3) *Gate {
	t.Helper()
	g := &Gate{}
	g.URL = Front(t, srv, func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		g.mu.Lock()
		answer, lose := g.answer, g.lose
		g.mu.Unlock()
		switch {
		case answer != nil && answer(w, r):
		case lose != nil && lose(r):
			pass.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		default:
			pass.ServeHTTP(w, r)
		}
	})
	return g
}

// Set has answer asked first from now on: true says that it has answered. nil lets everything through.
func (g *Gate) Set(answer func(w http.ResponseWriter, r *http.Request) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answer = answer
}

// Lose has requests that fit reach the server from now on, and their answers be lost: the connection breaks. nil loses nothing.
func (g *Gate) Lose(fits func(r *http.Request) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lose = fits
}

// Env returns the variables with which the project's programs reach the server through the gate.
func (g *Gate) Env(srv *S3) map[string]string {
	return map[string]string{"S3_ENDPOINT": g.URL, "S3_REGION": srv.Region, "S3_ACCESS_KEY_ID": srv.AccessKeyID,
		"S3_SECRET_ACCESS_KEY": srv.SecretAccessKey}
}
