package gcs

import (
	"cmp"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google/externalaccount"
	"golang.org/x/oauth2/jwt"

	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

const (
	// scope is what a token must be good for.
	scope = "https://www.googleapis.com/auth/devstorage.read_write"
	// defaultMetadata is the address of metadata.google.internal: no resolver is needed for it.
	defaultMetadata = "169.254.169.254"
	// metadataTimeout bounds one question for a token.
	metadataTimeout = 10 * time.Second
)

// tokens returns the source of tokens that cfg names.
func (cfg Config) tokens() (*rest.Tokens, error) {
	if cfg.CredentialsFile == "" {
		host := cmp.Or(cfg.MetadataHost, defaultMetadata)
		return &rest.Tokens{From: "the machine's metadata at " + host, Fetch: metadataToken(host)}, nil
	}
	data, err := os.ReadFile(cfg.CredentialsFile)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	source, err := tokenSource(data)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %s: %w", cfg.CredentialsFile, err)
	}
	return &rest.Tokens{From: "the credentials in " + cfg.CredentialsFile, Fetch: func(context.Context) (rest.Token, error) {
		t, err := source.Token()
		if err != nil {
			return rest.Token{}, explainToken(cfg.CredentialsFile, err)
		}
		return rest.Token{Value: t.AccessToken, Expires: expiry(t.Expiry)}, nil
	}}, nil
}

// credentials is a file with credentials, as Google's tools write it.
// Source: https://google.aip.dev/auth/4112, 4113, 4117
type credentials struct {
	Type string `json:"type"`
	// Of a service account.
	ClientEmail  string `json:"client_email"`
	PrivateKeyID string `json:"private_key_id"`
	PrivateKey   string `json:"private_key"`
	TokenURI     string `json:"token_uri"`
	// Of a user.
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	RefreshToken string `json:"refresh_token"`
	// Of a federation.
	Audience         string `json:"audience"`
	SubjectTokenType string `json:"subject_token_type"`
	TokenURL         string `json:"token_url"`
	ImpersonationURL string `json:"service_account_impersonation_url"`
	Impersonation    struct {
		Seconds int `json:"token_lifetime_seconds"`
	} `json:"service_account_impersonation"`
	Source      *externalaccount.CredentialSource `json:"credential_source"`
	UserProject string                            `json:"workforce_pool_user_project"`
}

// tokenSource makes of a file's content what gets tokens. What the file names is asked; it is the operator's own.
func tokenSource(data []byte) (oauth2.TokenSource, error) {
	var c credentials
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("it is not a JSON file: %w", err)
	}
	client := rest.NewHTTP()
	client.Timeout = 30 * time.Second
	// oauth2 keeps this context for as long as there are tokens to get: it only carries the client, whose timeout bounds each request.
	ctx := context.WithValue(context.Background(), oauth2.HTTPClient, client)
	uri := cmp.Or(c.TokenURI, "https://oauth2.googleapis.com/token")
	switch c.Type {
	case "service_account":
		if block, _ := pem.Decode([]byte(c.PrivateKey)); block == nil || c.ClientEmail == "" {
			return nil, errors.New("it has no client_email, or no private_key in PEM")
		}
		conf := jwt.Config{Email: c.ClientEmail, PrivateKey: []byte(c.PrivateKey), PrivateKeyID: c.PrivateKeyID, TokenURL: uri,
			Scopes: []string{scope}}
		return conf.TokenSource(ctx), nil
	case "authorized_user":
		if c.RefreshToken == "" {
			return nil, errors.New("it has no refresh_token")
		}
		conf := oauth2.Config{ClientID: c.ClientID, ClientSecret: c.ClientSecret, Scopes: []string{scope},
			Endpoint: oauth2.Endpoint{TokenURL: uri, AuthStyle: oauth2.AuthStyleInParams}}
		return conf.TokenSource(ctx, &oauth2.Token{RefreshToken: c.RefreshToken}), nil
	case "external_account":
		return externalaccount.NewTokenSource(ctx, externalaccount.Config{Audience: c.Audience, SubjectTokenType: c.SubjectTokenType,
			TokenURL: c.TokenURL, ServiceAccountImpersonationURL: c.ImpersonationURL, ClientID: c.ClientID, ClientSecret: c.ClientSecret,
			ServiceAccountImpersonationLifetimeSeconds: c.Impersonation.Seconds, CredentialSource: c.Source, Scopes: []string{scope},
			WorkforcePoolUserProject: c.UserProject})
	}
	return nil, fmt.Errorf("its type is %q; service_account, authorized_user and external_account are supported", c.Type)
}

// expiry: a token that doesn't say when it ends is taken to last for a while.
func expiry(t time.Time) time.Time {
	if t.IsZero() {
		return time.Now().Add(10 * time.Minute)
	}
	return t
}

// explainToken tells why Google gives no token.
func explainToken(file string, err error) error {
	te := &rest.TokenError{Need: "valid credentials: those in " + file + " are refused", Err: err}
	var re *oauth2.RetrieveError
	var ne net.Error
	switch {
	case errors.As(err, &re):
		if re.Response == nil {
			return te
		}
		se := &rest.StatusError{Status: re.Response.StatusCode, Header: re.Response.Header, At: time.Now()}
		te.Transient = se.Transient()
		if skew := se.Skew(); skew.Abs() > time.Minute {
			te.Need = rest.RightTime(skew)
		}
	case errors.As(err, &ne):
		te.Transient = true
	}
	return te
}

// metadataToken asks the machine's metadata, which is never behind a proxy.
func metadataToken(host string) func(ctx context.Context) (rest.Token, error) {
	client := &http.Client{
		Transport:     &http.Transport{DialContext: (&net.Dialer{Timeout: 3 * time.Second}).DialContext, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	const need = "credentials: there are none in GOOGLE_APPLICATION_CREDENTIALS, in gcloud's files, or in the machine's metadata"
	return func(ctx context.Context) (rest.Token, error) {
		ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
		defer cancel()
		url := "http://" + host + "/computeMetadata/v1/instance/service-accounts/default/token"
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return rest.Token{}, err
		}
		req.Header.Set("Metadata-Flavor", "Google")
		resp, err := client.Do(req)
		if err != nil {
			// Elsewhere than on Google's machines nobody is there. One who is there and doesn't answer may do so later.
			var op *net.OpError
			absent := errors.As(err, &op) && op.Op == "dial"
			return rest.Token{}, &rest.TokenError{Need: need, Transient: !absent, Err: fmt.Errorf("ask the machine's metadata: %w", err)}
		}
		data, err := rest.ReadAll(resp)
		if err != nil {
			return rest.Token{}, &rest.TokenError{Transient: true, Err: fmt.Errorf("ask the machine's metadata: %w", err)}
		}
		if resp.StatusCode != http.StatusOK {
			te := &rest.TokenError{Need: need, Err: fmt.Errorf("the machine's metadata at %s answers %s: %s", host, resp.Status,
				strings.TrimSpace(string(data[:min(len(data), 200)])))}
			if resp.StatusCode == http.StatusNotFound {
				te.Need = "a service account: this machine has none"
			}
			te.Transient = resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests
			return rest.Token{}, te
		}
		var answer struct {
			Token   string `json:"access_token"`
			Seconds int64  `json:"expires_in"`
		}
		if err := json.Unmarshal(data, &answer); err != nil {
			return rest.Token{}, &rest.TokenError{Need: need, Err: fmt.Errorf("read the metadata's answer: %w", err)}
		}
		return rest.Token{Value: answer.Token, Expires: time.Now().Add(time.Duration(answer.Seconds) * time.Second)}, nil
	}
}

func bearer(tokens *rest.Tokens) func(context.Context, *http.Request) error {
	return func(ctx context.Context, req *http.Request) error {
		token, err := tokens.Get(ctx)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		return nil
	}
}
