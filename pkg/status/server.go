package status

import (
	"net/http"
	"time"
)

// Server serves the status port. Whoever reaches it needs no certificate, so a request has little time and a small head.
func Server(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 20 * time.Second, WriteTimeout: time.Minute,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
}
