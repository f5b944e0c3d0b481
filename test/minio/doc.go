// Package minio runs pkg/blob/s3 against MinIO, and on it what only MinIO can show: real policies, and a bucket that keeps versions
// while thousands of objects go. It holds tests alone; it is apart from pkg/blob/s3 because building MinIO takes minutes.
package minio
