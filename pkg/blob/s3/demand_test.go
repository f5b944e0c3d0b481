package s3

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// wire sends all requests to one server, whatever their host is, and notes them.
type wire struct {
	to    *url.URL
	mu    sync.Mutex
	hosts []string
}

func (w *wire) Do(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	w.hosts = append(w.hosts, r.URL.Host)
	w.mu.Unlock()
	r.Host = r.URL.Host
	r.URL.Scheme, r.URL.Host = w.to.Scheme, w.to.Host
	return http.DefaultTransport.RoundTrip(r)
}

// onWire is a store all of whose clients send to a handler.
func onWire(t *testing.T, cfg Config, h http.HandlerFunc) (*Store, *wire) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	to, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{to: to}
	cfg.Bucket = "bucket"
	if os.Getenv("AWS_ACCESS_KEY_ID") == "" { // a configuration with keys reads no environment
		cfg.AccessKeyID, cfg.SecretAccessKey = "id", "secret"
	}
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	made := s.newClient
	s.newClient = func(region string) *awss3.Client {
		return awss3.New(made(region).Options(), func(o *awss3.Options) { o.HTTPClient = w })
	}
	s.client.Store(s.newClient(s.client.Load().Options().Region))
	return s, w
}

// TestDualStack: AWS is addressed by names that have IPv6 addresses too, also where the first answer names another region. Another
// server is addressed as it was given, and so is AWS where that is wanted or there are no such names.
func TestDualStack(t *testing.T) {
	for name, x := range map[string]struct {
		cfg  Config
		want []string
	}{
		"AWS":   {Config{Region: "eu-west-3"}, []string{"bucket.s3.dualstack.eu-west-3.amazonaws.com"}},
		"China": {Config{Region: "cn-north-1"}, []string{"bucket.s3.dualstack.cn-north-1.amazonaws.com.cn"}},
		"another region": {Config{Region: "us-east-1"},
			[]string{"bucket.s3.dualstack.us-east-1.amazonaws.com", "bucket.s3.dualstack.eu-west-3.amazonaws.com"}},
		"isolated partition": {Config{Region: "us-iso-east-1"}, []string{"bucket.s3.us-iso-east-1.c2s.ic.gov"}},
		"not wanted":         {Config{Region: "eu-west-3", SingleStack: true}, []string{"bucket.s3.eu-west-3.amazonaws.com"}},
		"another server": {Config{Region: "eu-west-3", Endpoint: "https://minio.example:9000", PathStyle: true},
			[]string{"minio.example:9000"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, w := onWire(t, x.cfg, func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.Host, "us-east-1.amazonaws.com") {
					w.Header().Set("X-Amz-Bucket-Region", "eu-west-3")
					answer(w, r, http.StatusMovedPermanently, "PermanentRedirect", "")
					return
				}
				answer(w, r, http.StatusNotFound, "NoSuchKey", "")
			})
			if _, err := s.Stat(t.Context(), "k"); !errors.Is(err, blob.ErrNotFound) {
				t.Error(err)
			}
			if got := slices.Compact(w.hosts); !slices.Equal(got, x.want) {
				t.Errorf("asked: %v; want %v", got, x.want)
			}
		})
	}
}

// TestDualStackBesideAnEndpoint: an endpoint that the environment gives is used as it is, whichever of the SDK's variables has it.
func TestDualStackBesideAnEndpoint(t *testing.T) {
	for _, variable := range []string{"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"} {
		t.Run(variable, func(t *testing.T) {
			t.Setenv(variable, "https://minio.example:9000")
			t.Setenv("AWS_ACCESS_KEY_ID", "id")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
			s, w := onWire(t, Config{Region: "eu-west-3", PathStyle: true}, func(w http.ResponseWriter, r *http.Request) {
				answer(w, r, http.StatusNotFound, "NoSuchKey", "")
			})
			if _, err := s.Stat(t.Context(), "k"); !errors.Is(err, blob.ErrNotFound) {
				t.Error(err)
			}
			if got := slices.Compact(w.hosts); !s.custom || !slices.Equal(got, []string{"minio.example:9000"}) {
				t.Errorf("asked: %v, another server than AWS: %t", got, s.custom)
			}
		})
	}
}

// bucket is a server of just as much of S3 as a put needs. judge says what becomes of a request that stores something; 0 lets it pass.
type bucket struct {
	judge func(h http.Header) int
	mu    sync.Mutex
	sent  []http.Header
	sizes map[string]int64
}

func (b *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		return // the client is gone
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	q := r.URL.Query()
	if stores := r.Method == http.MethodPut && !q.Has("uploadId") || q.Has("uploads"); stores {
		b.sent = append(b.sent, r.Header)
		switch status := b.judge(r.Header); status {
		case 0:
		case -1:
			panic(http.ErrAbortHandler)
		case http.StatusForbidden:
			answer(w, r, status, "AccessDenied", "explicit deny in a resource-based policy")
			return
		default:
			answer(w, r, status, "PreconditionFailed", "")
			return
		}
	}
	w.Header().Set("ETag", `"e"`)
	switch {
	case q.Has("uploads"):
		fmt.Fprint(w, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
	case r.Method == http.MethodPut:
		b.sizes[r.URL.Path] += n
	case r.Method == http.MethodPost:
		fmt.Fprint(w, "<CompleteMultipartUploadResult><ETag>&quot;e&quot;</ETag></CompleteMultipartUploadResult>")
	case b.sizes[r.URL.Path] == 0:
		answer(w, r, http.StatusNotFound, "NoSuchKey", "")
	case r.Method == http.MethodHead:
		w.Header().Set("Content-Length", fmt.Sprint(b.sizes[r.URL.Path]))
	}
}

const sseHeader = "X-Amz-Server-Side-Encryption"

func denyPlain(h http.Header) int {
	if h.Get(sseHeader) != "AES256" {
		return http.StatusForbidden
	}
	return 0
}

// TestDemandedEncryption: a bucket whose policy denies what names no encryption is written to as it wants it; all others keep their
// own default.
func TestDemandedEncryption(t *testing.T) {
	small, large := 100, DefaultSingle+1
	for name, x := range map[string]struct {
		judge func(h http.Header) int
		size  int
		sse   string
		err   error
		// sent are the encryptions that were named in three puts.
		sent []string
	}{
		"no policy":       {func(http.Header) int { return 0 }, small, "", nil, []string{"", "", ""}},
		"demanded":        {denyPlain, small, "", nil, []string{"", "AES256", "AES256", "AES256"}},
		"demanded, large": {denyPlain, large, "", nil, []string{"", "AES256", "AES256", "AES256"}},
		"denied in any case": {func(http.Header) int { return http.StatusForbidden }, small, "", blob.ErrDenied,
			[]string{"", "AES256", "", "AES256", "", "AES256"}},
		"KMS is demanded": {denyPlain, small, "aws:kms", blob.ErrDenied, []string{"aws:kms", "aws:kms", "aws:kms"}},
		"demanded, and it is there": {func(h http.Header) int {
			if h.Get(sseHeader) == "" {
				return http.StatusForbidden
			}
			return http.StatusPreconditionFailed
		}, small, "", blob.ErrPreconditionFailed, []string{"", "AES256", "AES256", "AES256"}},
		"the answer is lost": {func(h http.Header) int {
			if h.Get(sseHeader) == "" {
				return http.StatusForbidden
			}
			return -1
		}, small, "", blob.ErrTransient, []string{"", "AES256", "", "AES256", "", "AES256"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := &bucket{judge: x.judge, sizes: map[string]int64{}}
			s, _ := onWire(t, Config{Region: "eu-west-3", Write: WriteOptions{SSE: x.sse}}, b.ServeHTTP)
			for i := range 3 {
				_, err := s.Put(t.Context(), fmt.Sprintf("k%d", i), bytes.NewReader(make([]byte, x.size)), blob.PutOptions{IfAbsent: true})
				if !errors.Is(err, x.err) {
					t.Errorf("put %d: %v; want %v", i, err, x.err)
				}
			}
			var sent []string
			for _, h := range b.sent {
				sent = append(sent, h.Get(sseHeader))
			}
			if !slices.Equal(sent, x.sent) {
				t.Errorf("named: %q; want %q", sent, x.sent)
			}
		})
	}
}

// TestACL: what is put has the ACL that is asked for, and else that of the bucket.
func TestACL(t *testing.T) {
	for _, acl := range []string{"", "bucket-owner-full-control"} {
		for _, size := range []int{100, DefaultSingle + 1} {
			b := &bucket{judge: func(http.Header) int { return 0 }, sizes: map[string]int64{}}
			s, _ := onWire(t, Config{Region: "eu-west-3", Write: WriteOptions{ACL: acl}}, b.ServeHTTP)
			if _, err := s.Put(t.Context(), "k", bytes.NewReader(make([]byte, size)), blob.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			if len(b.sent) != 1 || b.sent[0].Get("X-Amz-Acl") != acl {
				t.Errorf("%d bytes: sent with %q", size, b.sent)
			}
		}
	}
}
