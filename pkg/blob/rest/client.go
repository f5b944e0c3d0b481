package rest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

const (
	// maxAnswer bounds an answer that is read into memory, in bytes. A page of a listing has about 1 MiB.
	maxAnswer = 32 << 20
	// maxWait bounds what a server may ask to wait before the next attempt.
	maxWait = 30 * time.Second
)

// Client sends the requests of a store. Its fields must not change once it is used. It may be used concurrently.
type Client struct {
	// HTTP sends; NewHTTP makes one.
	HTTP *http.Client
	// Authorize adds to a request what proves who sends it. It is called for every attempt. nil adds nothing.
	Authorize func(ctx context.Context, req *http.Request) error
	// Refused is called after an answer 401, before the one attempt that follows it: what Authorize keeps may have ended early. May be nil.
	Refused func()
	// Explain reads code and message out of the body of an answer that is an error.
	Explain func(header http.Header, body []byte) (code, message string)
	// OnRequest is called before every attempt with the operation's name. May be nil.
	OnRequest func(operation string)
}

// Request is one request of a store.
type Request struct {
	// Op is the operation's name, as the provider calls it.
	Op string
	// Method, URL and Header are HTTP's.
	Method, URL string
	Header      http.Header
	// Body is sent in one piece, and again with each attempt. It must not change before Do has returned.
	Body [][]byte
	// Tries is the greatest number of attempts, the first included. More than one is for requests that can be sent twice without
	// harm. 0 means 1.
	Tries int
	// Pause is the mean pause before the second attempt; it doubles with each further one. 0 means 200 ms.
	Pause time.Duration
	// Timeout bounds one attempt up to the header of its answer. 0 means a minute.
	Timeout time.Duration
}

// NewHTTP returns a client that gives up on dead connections, but puts no bound on a whole transfer, and follows no redirect.
func NewHTTP() *http.Client {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, ForceAttemptHTTP2: true,
			MaxIdleConns: 20, MaxIdleConnsPerHost: 10, IdleConnTimeout: 30 * time.Second, TLSHandshakeTimeout: 10 * time.Second,
			ExpectContinueTimeout: time.Second,
			DisableCompression:    true, // else lengths and checksums would not be those of what is stored
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Do sends r and returns the answer, whose body the caller closes. An answer of 400 or more is a *StatusError.
func (c *Client) Do(ctx context.Context, r Request) (*http.Response, error) {
	pause := r.Pause
	if pause == 0 {
		pause = 200 * time.Millisecond
	}
	most := 0
	reauthorized := false
	for try := 1; ; try++ {
		resp, err := c.attempt(ctx, r, &most)
		if err == nil {
			return resp, nil
		}
		var se *StatusError
		if errors.As(err, &se) && se.Status == http.StatusUnauthorized && c.Refused != nil && !reauthorized {
			// Nothing was done, so this attempt is harmless, and no other counts for it.
			reauthorized = true
			try--
			c.Refused()
			continue
		}
		if try >= r.Tries || ctx.Err() != nil || !again(err) {
			return nil, err
		}
		wait := time.Duration(float64(pause) * (0.5 + rand.Float64()))
		if se != nil {
			wait = max(wait, se.wait())
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait {
			return nil, err // it says more than the end of the context
		}
		if blob.Sleep(ctx, wait) != nil {
			return nil, err
		}
		pause *= 2
	}
}

// again tells whether another attempt may have another result.
func again(err error) bool {
	var se *StatusError
	if errors.As(err, &se) {
		return se.Transient()
	}
	var te *TokenError
	if errors.As(err, &te) {
		return false // it was tried often enough
	}
	return !isCertificateError(err)
}

func (c *Client) attempt(ctx context.Context, r Request, most *int) (*http.Response, error) {
	timeout := r.Timeout
	if timeout == 0 {
		timeout = time.Minute
	}
	actx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(timeout, func() { cancel(errLate) })
	resp, err := c.send(actx, ctx, r, most)
	inTime := late.Stop()
	if err != nil {
		if !inTime && errors.Is(context.Cause(actx), errLate) {
			err = fmt.Errorf("%w within %s: %w", errLate, timeout, err)
		}
		cancel(nil)
		return nil, err
	}
	blob.Progressed(ctx)
	if resp.StatusCode >= http.StatusBadRequest {
		defer cancel(nil)
		return nil, c.failed(r, resp)
	}
	resp.Body = &body{resp.Body, cancel}
	return resp, nil
}

// errLate is the cause of an attempt's end that its own time brought about.
var errLate error = lateError{}

type lateError struct{}

func (lateError) Error() string   { return "no answer" }
func (lateError) Timeout() bool   { return true }
func (lateError) Temporary() bool { return true }

func (c *Client) send(actx, ctx context.Context, r Request, most *int) (*http.Response, error) {
	var sent io.Reader = http.NoBody
	var parts []io.Reader
	length := 0
	for _, part := range r.Body {
		parts = append(parts, bytes.NewReader(part))
		length += len(part)
	}
	if length > 0 {
		sent = &shown{ctx: ctx, r: io.MultiReader(parts...), most: most}
	}
	req, err := http.NewRequestWithContext(actx, r.Method, r.URL, sent)
	if err != nil {
		return nil, err
	}
	req.ContentLength = int64(length)
	for name, values := range r.Header {
		req.Header[name] = values
	}
	if c.Authorize != nil {
		if err := c.Authorize(actx, req); err != nil {
			return nil, err
		}
	}
	if c.OnRequest != nil {
		c.OnRequest(r.Op)
	}
	resp, err := c.HTTP.Do(req)
	var ue *url.Error
	if errors.As(err, &ue) {
		// A URL's query may hold a secret.
		err = fmt.Errorf("%s: %s: %w", r.Op, req.URL.Host, ue.Err)
	}
	return resp, err
}

// body ends its attempt's context when it is closed.
type body struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// shown is the body of one attempt. What is sent again, as there was no answer, is no progress; most is how much any attempt has sent.
type shown struct {
	ctx  context.Context
	r    io.Reader
	sent int
	most *int
}

func (s *shown) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if s.sent += n; s.sent > *s.most {
		*s.most = s.sent
		blob.Progressed(s.ctx)
	}
	return n, err
}

func (c *Client) failed(r Request, resp *http.Response) error {
	defer resp.Body.Close()
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // what can't be read explains nothing
	e := &StatusError{Op: r.Op, Status: resp.StatusCode, Header: resp.Header, At: time.Now()}
	if c.Explain != nil {
		e.Code, e.Message = c.Explain(resp.Header, data)
		e.Code, e.Message = short(e.Code), short(e.Message)
	}
	return e
}

// short bounds what a server says in a message of ours.
func short(s string) string {
	const most = 500
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// ReadAll reads the body of an answer and closes it.
func ReadAll(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(data) > maxAnswer {
		err = fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	}
	return data, err
}

// Drop closes an answer that says enough by its header.
func Drop(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	_ = resp.Body.Close()
}

// StatusError is an answer of 400 or more.
type StatusError struct {
	// Op is the operation.
	Op string
	// Status is HTTP's, Code and Message are the provider's and may be empty.
	Status        int
	Code, Message string
	// Header is that of the answer, At when it came.
	Header http.Header
	At     time.Time
}

// Error names the operation and what the server said.
func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s: %d %s", e.Op, e.Status, http.StatusText(e.Status))
	if e.Code != "" {
		s += " (" + e.Code + ")"
	}
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// Transient tells whether the server asks to try again.
func (e *StatusError) Transient() bool {
	return e.Status >= 500 && e.Status != http.StatusNotImplemented || e.Status == http.StatusTooManyRequests ||
		e.Status == http.StatusRequestTimeout
}

// wait is how long the server asks to wait.
func (e *StatusError) wait() time.Duration {
	seconds, err := strconv.Atoi(e.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, maxWait)
}

// Skew is how far this machine's clock is ahead of the server's, rounded to a second; 0 if the answer has no time.
func (e *StatusError) Skew() time.Duration {
	theirs, err := http.ParseTime(e.Header.Get("Date"))
	if err != nil {
		return 0
	}
	return e.At.Sub(theirs).Round(time.Second)
}
