package s3

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// fake opens a store whose server is a handler.
func fake(t *testing.T, h http.HandlerFunc) *Store {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	s, err := New(t.Context(), Config{Bucket: "b", Endpoint: srv.URL, PathStyle: true, AccessKeyID: "id", SecretAccessKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func answer(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, message)
	}
}

// TestErrors holds the answers of servers against what callers branch on.
func TestErrors(t *testing.T) {
	tests := []struct {
		name          string
		status        int
		code, message string
		get, put      error
		action        string // Of the put.
		text          string // In the error of the get.
	}{
		{name: "absent", status: 404, code: "NoSuchKey", get: blob.ErrNotFound, put: blob.ErrNotFound},
		{name: "no bucket", status: 404, code: "NoSuchBucket", get: blob.ErrInvalid, put: blob.ErrInvalid,
			text: `the bucket "b" does not exist`},
		{name: "denied", status: 403, code: "AccessDenied", message: "Access Denied", get: blob.ErrDenied,
			put: blob.ErrDenied, action: "s3:PutObject", text: "needs s3:GetObject"},
		{
			name: "denied, with the action", status: 403, code: "AccessDenied",
			message: "User: arn:aws:sts::1:x is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:x because no identity-based policy allows it",
			get:     blob.ErrDenied, put: blob.ErrDenied, action: "kms:GenerateDataKey", text: "needs kms:GenerateDataKey",
		},
		{name: "bad key", status: 403, code: "InvalidAccessKeyId", get: blob.ErrDenied, put: blob.ErrDenied, action: "valid credentials"},
		{name: "bad token", status: 400, code: "ExpiredToken", get: blob.ErrDenied, put: blob.ErrDenied, action: "valid credentials"},
		{name: "clock", status: 403, code: "RequestTimeTooSkewed", get: blob.ErrDenied, put: blob.ErrDenied, text: "this machine's clock"},
		{name: "KMS key", status: 400, code: "KMS.DisabledException", get: blob.ErrDenied, put: blob.ErrDenied, text: "KMS key"},
		{name: "busy", status: 503, code: "SlowDown", get: blob.ErrTransient, put: blob.ErrTransient},
		{name: "broken", status: 500, code: "InternalError", get: blob.ErrTransient, put: blob.ErrTransient},
		{name: "throttled", status: 429, code: "TooManyRequests", get: blob.ErrTransient, put: blob.ErrTransient},
		{name: "damaged on the way", status: 400, code: "XAmzContentSHA256Mismatch", get: blob.ErrTransient, put: blob.ErrTransient},
		{name: "elsewhere", status: 301, code: "PermanentRedirect", get: blob.ErrInvalid, put: blob.ErrInvalid, text: "another region"},
		{name: "unknown to the server", status: 501, code: "NotImplemented", get: blob.ErrInvalid, put: blob.ErrInvalid,
			text: "lacks this operation"},
		{name: "nonsense", status: 400, code: "InvalidRequest", get: blob.ErrInvalid, put: blob.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := fake(t, func(w http.ResponseWriter, r *http.Request) { answer(w, r, tt.status, tt.code, tt.message) })
			_, err := s.Put(t.Context(), "k", strings.NewReader("x"), blob.PutOptions{IfAbsent: true})
			var be *blob.Error
			if !errors.Is(err, tt.put) || !errors.As(err, &be) || tt.action != "" && be.Action != tt.action ||
				be.Key != "s3://b/k" || be.Op != "put" {
				t.Errorf("Put: %v", err)
			}
			_, _, err = s.Get(t.Context(), "k", blob.Range{})
			if !errors.Is(err, tt.get) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Get: %v", err)
			}
			if _, err = s.Stat(t.Context(), "k"); !errors.Is(err, tt.get) && tt.status != 400 {
				t.Errorf("Stat: %v", err) // A HEAD that ends with 400 tells no code.
			}
			for _, kind := range []error{blob.ErrNotFound, blob.ErrPreconditionFailed} {
				if kind != tt.get && errors.Is(err, kind) {
					t.Errorf("Stat takes it for %v: %v", kind, err)
				}
			}
		})
	}
}

// Whether an answer to a conditional put was lost is for the caller to find out: a blind second
// attempt would fail on the first one's success.
func TestConditionalPutIsSentOnce(t *testing.T) {
	var puts atomic.Int64
	s := fake(t, func(w http.ResponseWriter, r *http.Request) {
		puts.Add(1)
		panic(http.ErrAbortHandler)
	})
	_, err := s.Put(t.Context(), "k", strings.NewReader("x"), blob.PutOptions{IfAbsent: true})
	if !errors.Is(err, blob.ErrTransient) || puts.Load() != 1 {
		t.Errorf("sent %d times: %v", puts.Load(), err)
	}
	if _, err = s.Put(t.Context(), "k", strings.NewReader("x"), blob.PutOptions{}); !errors.Is(err, blob.ErrTransient) || puts.Load() < 3 {
		t.Errorf("an unconditional put was tried %d times: %v", puts.Load()-1, err)
	}
}

// 409 says that another conditional put was under way and nothing was stored.
func TestConflictIsTriedAgain(t *testing.T) {
	var puts atomic.Int64
	s := fake(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", `"e"`)
		w.Header().Set("Content-Length", "1")
		if r.Method == http.MethodPut {
			w.Header().Set("Content-Length", "0")
			if puts.Add(1) < 3 {
				w.Header().Del("Content-Length")
				answer(w, r, http.StatusConflict, "ConditionalRequestConflict", "")
			}
		}
	})
	if info, err := s.Put(t.Context(), "k", strings.NewReader("x"), blob.PutOptions{IfAbsent: true}); err != nil ||
		puts.Load() != 3 || info.Version != "e" {
		t.Errorf("Put = %+v, %v after %d attempts", info, err, puts.Load())
	}
}

// A server that stores something else than what it was sent is found out.
func TestWronglyStored(t *testing.T) {
	for name, h := range map[string]http.Header{
		"size":     {"Content-Length": {"2"}},
		"checksum": {"Content-Length": {"1"}, "X-Amz-Checksum-Sha256": {"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}},
	} {
		t.Run(name, func(t *testing.T) {
			s := fake(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Etag", `"e"`)
				if r.Method == http.MethodHead {
					for k, v := range h {
						w.Header()[k] = v
					}
				}
			})
			if _, err := s.Put(t.Context(), "k", strings.NewReader("x"), blob.PutOptions{}); err == nil ||
				!strings.Contains(err.Error(), "stored wrongly") {
				t.Errorf("Put: %v", err)
			}
		})
	}
}

func TestDamagedReads(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"cut short": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = w.Write([]byte("12345"))
			panic(http.ErrAbortHandler)
		},
		"bit flip": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Amz-Checksum-Sha256", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
			_, _ = w.Write([]byte("12345"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := fake(t, h)
			data, _, err := blob.ReadAll(t.Context(), s, "k", 100)
			var be *blob.Error
			if !errors.As(err, &be) || data != nil {
				t.Errorf("read %q, %v", data, err)
			}
		})
	}
	s := fake(t, func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte("the whole object")) })
	if rc, _, err := s.Get(t.Context(), "k", blob.Range{Offset: 4}); err == nil {
		rc.Close()
		t.Errorf("a server that ignores the range went unnoticed")
	}
}

// The region in the configuration may be wrong or missing; the bucket's own is learned.
func TestRegionIsLearned(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	s := fake(t, func(w http.ResponseWriter, r *http.Request) {
		region := strings.Split(r.Header.Get("Authorization"), "/")[2]
		mu.Lock()
		seen = append(seen, region)
		mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		if region != "eu-west-1" {
			w.Header().Set("X-Amz-Bucket-Region", "eu-west-1")
			answer(w, r, http.StatusMovedPermanently, "PermanentRedirect", "")
			return
		}
		w.Header().Set("Etag", `"e"`)
		if r.Method == http.MethodPut && string(body) != "content" {
			t.Errorf("the second attempt sent %q", body)
		}
		if r.Method == http.MethodHead {
			w.Header().Set("Content-Length", "7")
		}
	})
	s.custom = false
	if _, err := s.Put(t.Context(), "k", strings.NewReader("content"), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(seen, " "); got != "us-east-1 eu-west-1 eu-west-1" {
		t.Errorf("regions tried: %s", got)
	}
}

// The failures of a thousand deletes are told by reason.
func TestPurgeReportsByReason(t *testing.T) {
	s := fake(t, func(w http.ResponseWriter, r *http.Request) {
		var b strings.Builder
		if r.Method == http.MethodGet {
			if r.URL.Query().Has("versions") {
				answer(w, r, http.StatusForbidden, "AccessDenied", "")
				return
			}
			for i := range 5 {
				fmt.Fprintf(&b, "<Contents><Key>k%d</Key></Contents>", i)
			}
			fmt.Fprintf(w, "<ListBucketResult>%s</ListBucketResult>", b.String())
			return
		}
		for i := range 3 {
			fmt.Fprintf(&b, "<Error><Key>k%d</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>", i)
		}
		fmt.Fprint(&b, "<Error><Key>k3</Key><Code>SlowDown</Code></Error><Deleted><Key>k4</Key><DeleteMarker>true</DeleteMarker><DeleteMarkerVersionId>v</DeleteMarkerVersionId></Deleted>")
		fmt.Fprintf(w, "<DeleteResult>%s</DeleteResult>", b.String())
	})
	n, err := s.Purge(t.Context(), "", func(string) bool { return true })
	if n != 1 || !errors.Is(err, blob.ErrDenied) || !errors.Is(err, blob.ErrTransient) {
		t.Errorf("Purge = %d, %v", n, err)
	}
	var named []string
	refused, rest := blob.SplitRefused(err)
	for _, e := range refused {
		named = append(named, e.Keys...)
	}
	if fmt.Sprint(named) != "[k0 k1 k2 k3]" || len(rest) != 1 {
		t.Errorf("named are %v, and of the whole there is %v", named, rest)
	}
	for _, want := range []string{"s3:DeleteObject)", "and 2 more", "s3:ListBucketVersions and s3:DeleteObjectVersion", "SlowDown"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
}

// The buffers of a put are what bounds its memory.
func TestPutBuffers(t *testing.T) {
	s := fake(t, http.NotFound)
	if buffers := s.single + s.partSize*uploads; buffers > 18<<20 {
		t.Errorf("a put needs %d bytes of buffers, more than 18 MiB", buffers)
	}
}

// TestMachineRegion: where nothing names a region, that of the EC2 machine is asked first. An
// account of another partition isn't known elsewhere.
func TestMachineRegion(t *testing.T) {
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/latest/api/token":
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "600")
			fmt.Fprint(w, "token")
		case "/latest/dynamic/instance-identity/document":
			fmt.Fprint(w, `{"region":"cn-north-1"}`)
		default:
			http.NotFound(w, r)
		}
	}))
	defer metadata.Close()
	dir := t.TempDir()
	for k, v := range map[string]string{"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.URL,
		"AWS_EC2_METADATA_DISABLED": "false", "AWS_REGION": "", "AWS_DEFAULT_REGION": "",
		"AWS_CONFIG_FILE": filepath.Join(dir, "config"), "AWS_SHARED_CREDENTIALS_FILE": filepath.Join(dir, "credentials")} {
		t.Setenv(k, v)
	}
	for _, x := range []struct {
		cfg  Config
		want string
	}{
		{Config{Bucket: "b"}, "cn-north-1"},
		{Config{Bucket: "b", Region: "eu-west-1"}, "eu-west-1"},
		{Config{Bucket: "b", Endpoint: "http://127.0.0.1:1", PathStyle: true}, "us-east-1"},
		{Config{Bucket: "b", AccessKeyID: "a", SecretAccessKey: "s"}, "us-east-1"},
	} {
		s, err := New(t.Context(), x.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.client.Load().Options().Region; got != x.want {
			t.Errorf("%+v: region %s, want %s", x.cfg, got, x.want)
		}
	}
}

// TestRequesterPays: every request says who pays.
func TestRequesterPays(t *testing.T) {
	for _, pays := range []bool{true, false} {
		var got []string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got = append(got, r.Header.Get("X-Amz-Request-Payer"))
			w.WriteHeader(http.StatusNotFound)
		}))
		s, err := New(t.Context(), Config{Bucket: "b", Endpoint: srv.URL, PathStyle: true, AccessKeyID: "a",
			SecretAccessKey: "s", RequesterPays: pays})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Stat(t.Context(), "x"); err == nil {
			t.Error("it was found")
		}
		srv.Close()
		if want := map[bool]string{true: "requester"}[pays]; len(got) == 0 || got[0] != want {
			t.Errorf("pays %t: the requests said %q", pays, got)
		}
	}
}
