// Package s3 keeps objects in a bucket of Amazon S3 or of a server that speaks its protocol.
//
// It asks little of a server: PUT with If-None-Match and If-Match, GET, HEAD, LIST, multipart upload and
// DeleteObjects. How the known servers differ is a table in docs/s3-servers.md. The package never relies on
// a server's word alone: what was stored is looked at again before a put returns. Conditions are only relied on in
// single PUTs, so what must be fenced has to be smaller than one part.
package s3

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

const (
	// DefaultSingle is how many bytes are stored by a single PUT, which carries its condition on every server.
	DefaultSingle = 8 << 20
	// DefaultPartSize is the size of the parts of a multipart upload in bytes: the smallest, since so many of them are held in memory.
	DefaultPartSize = MinPartSize
	// MinPartSize is the smallest part that S3 takes, in bytes.
	MinPartSize = 5 << 20
	// maxParts is the greatest number of parts of an upload.
	maxParts = 10000
	// uploads is the number of parts under way at once. A put needs memory for one part more.
	uploads = 2
	// partTimeout bounds one part, so that a connection that hangs is noticed.
	partTimeout = 5 * time.Minute
)

// Config says which bucket, and how to reach it. Bucket is required; New checks it.
type Config struct {
	// Scheme is how the store's URL begins, for messages; empty means s3.
	Scheme string
	// Bucket is the bucket's name.
	Bucket string
	// Prefix is the base of all keys in the bucket, without slashes at its ends. It may be empty.
	Prefix string
	// Region of the bucket. If it is empty the AWS configuration's is used, else that of the
	// machine where it is one of EC2's, else us-east-1; the true region is learned from the
	// server's answer where that names it.
	Region string
	// Endpoint is the URL of a server other than AWS, http or https.
	Endpoint string
	// PathStyle puts the bucket into the URL's path instead of its host name, as most servers other than AWS want it.
	PathStyle bool
	// AccessKeyID and SecretAccessKey are static keys. If both are empty the AWS SDK's usual sources are used: environment,
	// files, web identity, container and instance roles.
	AccessKeyID, SecretAccessKey string
	// SessionToken belongs to temporary static keys.
	SessionToken string
	// CAFile names a PEM file with certificates that are trusted beside the system's.
	CAFile string
	// SingleStack has AWS addressed by the endpoints that have IPv4 addresses only.
	SingleStack bool
	// RequesterPays says that who asks pays, for buckets that want that.
	RequesterPays bool
	// PartSize is the size of the parts of a multipart upload in bytes, and of what is stored by a single PUT. 0 means DefaultPartSize and
	// DefaultSingle. A put needs up to four times as much memory.
	PartSize int64
	// Write is what is asked of the store for every object that is put.
	Write WriteOptions
	// OnRequest, if not nil, is called before every HTTP request, retries included, with the operation's name, for example
	// "PutObject". It is called concurrently and must not block.
	OnRequest func(operation string)
}

// Store is a bucket as a blob.Store. Make one with New. It has no goroutines; idle connections end by themselves.
type Store struct {
	scheme         string
	bucket, prefix string
	partSize       int64
	single         int64 // Larger bodies are stored in parts.
	write          WriteOptions
	custom         bool // An endpoint of its own, so not AWS.
	newClient      func(region string) *awss3.Client
	client         atomic.Pointer[awss3.Client]
	// demanded is set once the bucket was seen to deny what names no encryption, and to take what does.
	demanded atomic.Bool
	// unquoted is set once the server was seen to fail If-Match with a quoted ETag and to honor the bare one.
	unquoted atomic.Bool
}

// New returns the store that cfg describes. It reads the CA file and the AWS configuration files, but starts nothing and sends nothing:
// whether the bucket is there is for blob.Probe to find out.
func New(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("open S3 store: %w", err)
	}
	client, err := httpClient(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("open S3 store: %w", err)
	}
	base, err := awsConfig(ctx, cfg, client)
	if err != nil {
		return nil, fmt.Errorf("open S3 store: %w", err)
	}
	s := &Store{scheme: cmp.Or(cfg.Scheme, "s3"), bucket: cfg.Bucket, prefix: cfg.Prefix, partSize: cfg.PartSize,
		single: cfg.PartSize, write: cfg.Write}
	if s.partSize == 0 {
		s.partSize, s.single = DefaultPartSize, DefaultSingle
	}
	if s.prefix != "" {
		s.prefix += "/"
	}
	s.newClient = func(region string) *awss3.Client {
		return awss3.NewFromConfig(base, func(o *awss3.Options) {
			o.Region = region
			o.UsePathStyle = cfg.PathStyle
			if cfg.Endpoint != "" {
				o.BaseEndpoint = aws.String(cfg.Endpoint)
			}
			o.EndpointOptions.UseDualStackEndpoint = aws.DualStackEndpointStateDisabled // the SDK refuses it beside an endpoint
			if o.BaseEndpoint == nil && !cfg.SingleStack && hasDualStack(region) {
				o.EndpointOptions.UseDualStackEndpoint = aws.DualStackEndpointStateEnabled
			}
			// Checksums are sent and asked for explicitly, as headers: trailers are beyond many servers.
			o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
			o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
			o.DisableLogOutputChecksumValidationSkipped = true
			if cfg.RequesterPays {
				o.APIOptions = append(o.APIOptions, smithyhttp.AddHeaderValue("X-Amz-Request-Payer", "requester"))
			}
			o.APIOptions = append(o.APIOptions, showProgress)
			if cfg.OnRequest != nil {
				o.APIOptions = append(o.APIOptions, countRequests(cfg.OnRequest))
			}
		})
	}
	c := s.newClient(base.Region)
	s.custom = c.Options().BaseEndpoint != nil // AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3 and the AWS files can give one, too
	s.client.Store(c)
	return s, nil
}

// hasDualStack tells whether a region's endpoints can have IPv6 addresses too, so that machines without IPv4 reach them. Those of
// the isolated partitions can't.
func hasDualStack(region string) bool { return !strings.Contains(region, "-iso") }

func (cfg Config) check() error {
	if cfg.Bucket == "" {
		return errors.New("the bucket's name is empty")
	}
	if strings.ContainsAny(cfg.Bucket, "/ \t\n?#") {
		return fmt.Errorf("%q is not a bucket's name", cfg.Bucket)
	}
	if cfg.Prefix != "" {
		if err := blob.CheckKey(cfg.Prefix); err != nil {
			return fmt.Errorf("prefix: %w", err)
		}
	}
	if cfg.PartSize != 0 && cfg.PartSize < MinPartSize {
		return fmt.Errorf("part size %d is below S3's minimum of %d", cfg.PartSize, MinPartSize)
	}
	if (cfg.AccessKeyID == "") != (cfg.SecretAccessKey == "") {
		return errors.New("an access key id and a secret access key only make sense together, and one is empty")
	}
	if err := cfg.Write.check(); err != nil {
		return err
	}
	if cfg.Endpoint != "" {
		u, err := url.Parse(cfg.Endpoint)
		if err != nil {
			return fmt.Errorf("endpoint: %w", err)
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("endpoint %q is not an http or https URL", cfg.Endpoint)
		}
	}
	return nil
}

// httpClient returns a client that gives up on dead connections, but puts no bound on a whole transfer.
func httpClient(caFile string) (*awshttp.BuildableClient, error) {
	client := awshttp.NewBuildableClient().WithDialerOptions(func(d *net.Dialer) {
		d.Timeout, d.KeepAlive = 10*time.Second, 15*time.Second
	}).WithTransportOptions(func(t *http.Transport) {
		t.TLSHandshakeTimeout = 10 * time.Second
		t.ResponseHeaderTimeout = 60 * time.Second
		t.IdleConnTimeout = 30 * time.Second
	})
	if caFile == "" {
		return client, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read CA file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read CA file: %s holds no PEM certificate", caFile)
	}
	return client.WithTransportOptions(func(t *http.Transport) {
		if t.TLSClientConfig == nil {
			t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		t.TLSClientConfig.RootCAs = pool
	}), nil
}

func awsConfig(ctx context.Context, cfg Config, client *awshttp.BuildableClient) (aws.Config, error) {
	// What fails longer is for blob.Retry.
	newRetryer := func() aws.Retryer { return newRetryer(3, time.Second) }
	var base aws.Config
	if cfg.AccessKeyID != "" {
		base = aws.Config{
			Credentials: credentials.NewStaticCredentialsProvider(cfg.AccessKeyID, cfg.SecretAccessKey, cfg.SessionToken),
			HTTPClient:  client,
			Retryer:     newRetryer,
		}
	} else {
		var err error
		base, err = awsconfig.LoadDefaultConfig(ctx, awsconfig.WithHTTPClient(client), awsconfig.WithRetryer(newRetryer))
		if err != nil {
			return aws.Config{}, fmt.Errorf("load AWS configuration: %w", err)
		}
	}
	if cfg.Region != "" {
		base.Region = cfg.Region
	}
	if base.Region == "" && cfg.Endpoint == "" && base.BaseEndpoint == nil && cfg.AccessKeyID == "" {
		base.Region = machineRegion(ctx, base)
	}
	if base.Region == "" {
		base.Region = "us-east-1"
	}
	return base, nil
}

// regionTimeout bounds the question for the machine's region: elsewhere than on EC2 nobody answers.
const regionTimeout = time.Second

// machineRegion is the region of the machine, if it is one of EC2's. Credentials of other
// partitions are not known to us-east-1, and a private network may reach only its own region.
func machineRegion(ctx context.Context, base aws.Config) string {
	ctx, cancel := context.WithTimeout(ctx, regionTimeout)
	defer cancel()
	out, err := imds.NewFromConfig(base).GetRegion(ctx, nil)
	if err != nil {
		return ""
	}
	return out.Region
}

func newRetryer(attempts int, maxBackoff time.Duration) aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts, o.MaxBackoff = attempts, maxBackoff
		o.Retryables = append([]retry.IsErrorRetryable{retry.IsErrorRetryableFunc(func(err error) aws.Ternary {
			if isCertificateError(err) {
				return aws.FalseTernary
			}
			return aws.UnknownTernary
		})}, o.Retryables...)
	})
}

// patient is for the parts of an upload: the body can't be rewound, so nobody else can try them again.
func patient(o *awss3.Options) { o.Retryer = newRetryer(8, 20*time.Second) }

// countRequests calls f for every attempt.
func countRequests(f func(string)) func(*middleware.Stack) error {
	return func(stack *middleware.Stack) error {
		return stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc("CountRequests",
			func(ctx context.Context, in middleware.FinalizeInput,
				next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
				f(awsmiddleware.GetOperationName(ctx))
				return next.HandleFinalize(ctx, in)
			}), "Retry", middleware.After)
	}
}

// showProgress has each part of a request's body that is sent, and each answer, count as progress
// of the operation: a slow line isn't a store that hangs. What is sent again, as there was no
// answer, is none.
func showProgress(stack *middleware.Stack) error {
	err := stack.Initialize.Add(middleware.InitializeMiddlewareFunc("CountSent",
		func(ctx context.Context, in middleware.InitializeInput,
			next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
			return next.HandleInitialize(context.WithValue(ctx, sentKey{}, new(atomic.Int64)), in)
		}), middleware.Before)
	if err != nil {
		return err
	}
	return stack.Finalize.Add(middleware.FinalizeMiddlewareFunc("ShowProgress",
		func(ctx context.Context, in middleware.FinalizeInput,
			next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
			most, _ := ctx.Value(sentKey{}).(*atomic.Int64)
			if req, ok := in.Request.(*smithyhttp.Request); ok && most != nil && req.GetStream() != nil {
				shown, err := req.SetStream(&shownBody{ctx: ctx, r: req.GetStream(), most: most})
				if err != nil {
					return middleware.FinalizeOutput{}, middleware.Metadata{}, err
				}
				in.Request = shown
			}
			out, meta, err := next.HandleFinalize(ctx, in)
			if answered(err) {
				blob.Progressed(ctx)
			}
			return out, meta, err
		}), middleware.After)
}

// answered tells whether a request had an answer; a refusal is one, too. What ended without one is dressed up as the answer 0.
func answered(err error) bool {
	var answer *smithyhttp.ResponseError
	return err == nil || errors.As(err, &answer) && answer.HTTPStatusCode() != 0
}

type sentKey struct{}

// shownBody is the body of one attempt; most is how much of it any attempt has sent.
type shownBody struct {
	ctx  context.Context
	r    io.Reader
	sent int64
	most *atomic.Int64
}

func (b *shownBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.sent += int64(n); b.sent > b.most.Load() {
		b.most.Store(b.sent)
		blob.Progressed(b.ctx)
	}
	return n, err
}

// String is the base's URL.
func (s *Store) String() string {
	return strings.TrimSuffix(s.scheme+"://"+path.Join(s.bucket, s.prefix), "/")
}

// name is a key as the user would find it.
func (s *Store) name(key string) string { return s.scheme + "://" + s.bucket + "/" + s.prefix + key }

func (s *Store) key(key string) *string { return aws.String(s.prefix + key) }

// call sends one request, and sends it again to another region if the answer says that the bucket is there.
func call[I, O any](ctx context.Context, s *Store,
	send func(*awss3.Client, context.Context, *I, ...func(*awss3.Options)) (*O, error), in *I, opts ...func(*awss3.Options)) (*O, error) {
	client := s.client.Load()
	out, err := send(client, ctx, in, opts...)
	region := regionHint(err)
	if region == "" || region == client.Options().Region || s.custom {
		return out, err
	}
	s.client.CompareAndSwap(client, s.newClient(region))
	if err := rewind(in); err != nil {
		return nil, err
	}
	return send(s.client.Load(), ctx, in, opts...)
}

// regionHint is the region that a redirect or a refused signature names.
func regionHint(err error) string {
	status, header := response(err)
	if status == http.StatusMovedPermanently || status == http.StatusTemporaryRedirect || status == http.StatusBadRequest {
		return header.Get("X-Amz-Bucket-Region")
	}
	return ""
}

// etag strips the quotes of an ETag: what is left is the version.
func etag(e *string) string { return strings.Trim(aws.ToString(e), `"`) }

// once turns the SDK's own retries off, for requests whose second attempt would misread the success of the first.
func once(o *awss3.Options) { o.Retryer = aws.NopRetryer{} }
