package page

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Source says what is to be shown. It must return within a few seconds, whatever the store and etcd do. It is never called twice at a time.
type Source func(ctx context.Context) View

// shownFor is for how long one look serves all who ask.
const shownFor = time.Second

// Handler serves the page at /. All other paths are not found.
func Handler(source Source) (http.Handler, error) {
	p, err := parsePages()
	if err != nil {
		return nil, err
	}
	h := &handler{pages: p, source: source}
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", h)
	return secured(mux), nil
}

type handler struct {
	pages  *pages
	source Source

	mu   sync.Mutex // held while it is found out what to show
	view View
	at   time.Time
}

// ServeHTTP answers with the page.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := h.pages.render(h.look(r.Context()), refreshOf(r))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

func (h *handler) look(ctx context.Context) View {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.at.IsZero() || time.Since(h.at) >= shownFor {
		h.view = h.source(context.WithoutCancel(ctx)) // who has gone away doesn't spoil it for the next
		h.at = time.Now()
	}
	return h.view
}

// refreshOf is what a reader has chosen: none, or every half minute.
func refreshOf(r *http.Request) int {
	if r.URL.Query().Get("refresh") == strconv.Itoa(slowRefresh) {
		return slowRefresh
	}
	return noRefresh
}

// secured sets what a browser is to hold the pages to: they load and run nothing, nobody frames them, nothing of them is kept.
func secured(next http.Handler) http.Handler {
	policy := "default-src 'none'; style-src '" + styleHash() + "'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// LocalOnly refuses requests that name another host than this machine. A site could have its own name lead to 127.0.0.1 in a browser that
// runs here, and read what is meant for this machine; but the browser says the site's name then.
func LocalOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLocal(r.Host) {
			http.Error(w, "this address is for requests to localhost or a loopback address only; open http://localhost with the same port",
				http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func isLocal(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}
