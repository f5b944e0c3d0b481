package gcs_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/gcs"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// answers has every request of the store answered in the same way.
func answers(t *testing.T, status int, header map[string]string, body string) *gcs.Store {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	t.Cleanup(srv.Close)
	s, err := gcs.New(gcs.Config{Bucket: "b", Prefix: "main", Emulator: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Each refusal is told in the words of the one who has to end it.
func TestRefusals(t *testing.T) {
	refusal := func(code int, reason, message string) string {
		return fmt.Sprintf(`{"error": {"code": %d, "message": %q, "errors": [{"reason": %q, "message": %q}]}}`,
			code, message, reason, message)
	}
	for name, tt := range map[string]struct {
		status int
		header map[string]string
		body   string
		kind   error
		say    string
	}{
		"permission": {403, nil, refusal(403, "forbidden",
			"etcd@p.iam.gserviceaccount.com does not have storage.objects.get access to the "+
				"Google Cloud Storage object. Permission 'storage.objects.get' denied on resource (or it may not exist)."),
			blob.ErrDenied, "needs storage.objects.get"},
		"scope": {403, map[string]string{"Www-Authenticate": `Bearer realm="x", error="insufficient_scope"`},
			refusal(403, "insufficientPermissions",
				"Insufficient Permission"), blob.ErrDenied, "needs the scope https://www.googleapis.com/auth/devstorage.read_write"},
		"credentials": {401, nil, refusal(401, "authError", "Invalid Credentials"), blob.ErrDenied, "needs valid credentials"},
		"skew": {401, map[string]string{"Date": time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)}, "", blob.ErrDenied,
			"behind the store's"},
		"bucket": {404, nil, refusal(404, "notFound", "The specified bucket does not exist."), blob.ErrInvalid,
			`the bucket "b" does not exist`},
		"bare 404":     {404, nil, "Not Found", blob.ErrInvalid, `the bucket "b" does not exist`},
		"rate":         {403, nil, refusal(403, "rateLimitExceeded", "Too fast"), blob.ErrTransient, "Too fast"},
		"backend":      {503, nil, refusal(503, "backendError", "We're sorry"), blob.ErrTransient, "We're sorry"},
		"bad request":  {400, nil, refusal(400, "invalid", "Bad thing"), blob.ErrInvalid, "Bad thing"},
		"redirect":     {302, map[string]string{"Location": "http://127.0.0.1:1/"}, "", nil, ""},
		"not Google's": {200, nil, "<html>welcome</html>", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := answers(t, tt.status, tt.header, tt.body)
			_, err := s.Stat(t.Context(), "k")
			if err == nil || tt.kind != nil && !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.say) ||
				errors.Is(err, blob.ErrNotFound) {
				t.Errorf("Stat = %v", err)
			}
			for _, err := range s.List(t.Context(), "", blob.ListOptions{}) {
				if err == nil || tt.kind != nil && !errors.Is(err, tt.kind) {
					t.Errorf("List = %v", err)
				}
			}
		})
	}
}

// The probe names the permission that is missing.
func TestProbeNamesPermission(t *testing.T) {
	for _, missing := range []string{"storage.objects.create", "storage.objects.get", "storage.objects.list", "storage.objects.delete"} {
		t.Run(missing, func(t *testing.T) {
			srv := servers.StartGCS(t, false)
			srv.Set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
				needs := "storage.objects.get"
				switch {
				case strings.HasPrefix(r.URL.Path, "/batch/"):
					needs = "storage.objects.delete"
				case r.Method == http.MethodPost:
					needs = "storage.objects.create"
				case strings.HasSuffix(r.URL.Path, "/o"):
					needs = "storage.objects.list"
				}
				if needs != missing {
					return false
				}
				w.WriteHeader(http.StatusForbidden)
				fmt.Fprintf(w, `{"error": {"message": "x does not have %s access to the bucket.", "errors": [{"reason": "forbidden"}]}}`,
					missing)
				return true
			})
			r, err := blob.Probe(t.Context(), open(t, srv, "main", nil), "node-a")
			if err == nil || len(r.Missing) != 1 || r.Missing[0] != missing {
				t.Errorf("Probe = %s, %v", r, err)
			}
		})
	}
}

// metadata stands for a machine's.
func metadata(t *testing.T, handle http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(handle)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// A token is kept, and one that the store refuses is fetched again: it may have ended early.
func TestTokens(t *testing.T) {
	srv := servers.StartGCS(t, false)
	var fetched atomic.Int64
	host := metadata(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Metadata-Flavor") != "Google" || r.URL.Path != "/computeMetadata/v1/instance/service-accounts/default/token" {
			http.Error(w, "what?", http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, `{"access_token": "token-%d", "expires_in": 3600, "token_type": "Bearer"}`, fetched.Add(1))
	})
	var good atomic.Value
	good.Store("Bearer token-1")
	srv.Set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Header.Get("Authorization") == good.Load() {
			return false
		}
		http.Error(w, "Invalid Credentials", http.StatusUnauthorized)
		return true
	})
	s := open(t, srv, "main", func(c *gcs.Config) { c.Emulator, c.Endpoint, c.MetadataHost = "", srv.Endpoint, host })
	first := mustPut(s, t, "k", []byte("1"), blob.PutOptions{IfAbsent: true})
	good.Store("Bearer token-2")
	mustPut(s, t, "k", []byte("2"), blob.PutOptions{IfVersion: first.Version})
	if fetched.Load() != 2 {
		t.Errorf("%d tokens were fetched", fetched.Load())
	}
	good.Store("none")
	if _, err := s.Stat(t.Context(), "k"); !errors.Is(err, blob.ErrDenied) || !strings.Contains(err.Error(), "valid credentials") {
		t.Errorf("Stat = %v", err)
	}
	if fetched.Load() != 3 {
		t.Errorf("%d tokens were fetched", fetched.Load())
	}
}

// What is wrong with the machine's metadata is said, and doesn't look like a store that is away for good.
func TestMetadata(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for name, tt := range map[string]struct {
		host string
		kind error
		say  string
	}{
		"hangs": {metadata(t, func(http.ResponseWriter, *http.Request) { <-release }), blob.ErrTransient, "metadata"},
		"busy": {metadata(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "later", http.StatusServiceUnavailable) }),
			blob.ErrTransient, "later"},
		"no account": {metadata(t, http.NotFound), blob.ErrDenied, "needs a service account: this machine has none"},
		"absent":     {closed.Addr().String(), blob.ErrDenied, "there are none in GOOGLE_APPLICATION_CREDENTIALS, in gcloud's files"},
		"not JSON": {metadata(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }), blob.ErrDenied,
			"metadata's answer"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := gcs.New(gcs.Config{Bucket: "b", Endpoint: "http://127.0.0.1:1", MetadataHost: tt.host})
			if err != nil {
				t.Fatal(err)
			}
			bounded := blob.WithTimeouts(s, blob.Timeouts{Small: time.Second})
			_, err = bounded.Stat(t.Context(), "k")
			if !errors.Is(err, tt.kind) || name != "hangs" && !strings.Contains(err.Error(), tt.say) {
				t.Errorf("Stat = %v", err)
			}
		})
	}
}

// Files with credentials of all kinds get tokens; what is wrong with one is said before anything is sent.
func TestCredentialFiles(t *testing.T) {
	srv := servers.StartGCS(t, false)
	refuse := atomic.Bool{}
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refuse.Load() {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error": "invalid_grant", "error_description": "Invalid JWT Signature."}`)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token": "good", "expires_in": 3600, "token_type": "Bearer",
			"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}`)
	}))
	t.Cleanup(issuer.Close)
	srv.Set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Header.Get("Authorization") == "Bearer good" {
			return false
		}
		http.Error(w, "no", http.StatusUnauthorized)
		return true
	})
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	subject := filepath.Join(dir, "subject")
	if err := os.WriteFile(subject, []byte("subject token"), 0o600); err != nil {
		t.Fatal(err)
	}
	account := map[string]any{"type": "service_account", "client_email": "a@b", "token_uri": issuer.URL,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
	for name, tt := range map[string]struct {
		content any
		say     string
	}{
		"service account": {content: account},
		"user": {content: map[string]any{"type": "authorized_user", "refresh_token": "r", "client_id": "i",
			"token_uri": issuer.URL}},
		"federation": {content: map[string]any{"type": "external_account", "audience": "//iam.googleapis.com/x", "token_url": issuer.URL,
			"subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "credential_source": map[string]any{"file": subject}}},
		"another type": {map[string]any{"type": "gdch"}, `its type is "gdch"; service_account, authorized_user and external_account`},
		"no type":      {map[string]any{}, `its type is ""`},
		"no key":       {map[string]any{"type": "service_account"}, "it has no client_email, or no private_key"},
		"no token":     {map[string]any{"type": "authorized_user"}, "it has no refresh_token"},
		"not JSON":     {nil, "it is not a JSON file"},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := json.Marshal(tt.content)
			if err != nil {
				t.Fatal(err)
			}
			if tt.content == nil {
				data = []byte("key: value")
			}
			file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			refuse.Store(false)
			connect := func() (*gcs.Store, error) {
				return gcs.New(gcs.Config{Bucket: srv.Bucket, Prefix: "main", Endpoint: srv.Endpoint, CredentialsFile: file})
			}
			s, err := connect()
			if tt.say != "" {
				if err == nil || !strings.Contains(err.Error(), tt.say) || !strings.Contains(err.Error(), file) {
					t.Errorf("New = %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			mustPut(s, t, "k", []byte(name), blob.PutOptions{})
			refuse.Store(true)
			if s, err = connect(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Stat(t.Context(), "k"); !errors.Is(err, blob.ErrDenied) || !strings.Contains(err.Error(), "invalid_grant") ||
				!strings.Contains(err.Error(), file) {
				t.Errorf("Stat with refused credentials = %v", err)
			}
		})
	}
	_, err = gcs.New(gcs.Config{Bucket: "b", CredentialsFile: "/nowhere.json"})
	if err == nil || !strings.Contains(err.Error(), "/nowhere.json") {
		t.Errorf("a file that isn't there: %v", err)
	}
}
