#!/usr/bin/env node
// Verify a Stripe webhook, keep it once, queue a pointer, answer. The loop over the Runtime API is its own and less than
// AWS's runtime client does, so that the comparison errs in its favour.
import http from 'node:http'
import { ConditionalCheckFailedException, DynamoDBClient, PutItemCommand } from '@aws-sdk/client-dynamodb'
import { GetSecretValueCommand, SecretsManagerClient } from '@aws-sdk/client-secrets-manager'
import { SendMessageCommand, SQSClient } from '@aws-sdk/client-sqs'
import Stripe from 'stripe'

const { AWS_LAMBDA_RUNTIME_API, STRIPE_EVENTS_TABLE, STRIPE_EVENTS_QUEUE_URL, STRIPE_WEBHOOK_SECRET_ARN } = process.env
// The stub computes no MD5 of a message.
const [dynamodb, sqs, secrets] = [new DynamoDBClient(), new SQSClient({ md5: false }), new SecretsManagerClient()]
const stripe = new Stripe('sk_test_none')
let secret

async function readSecret() {
  const value = await secrets.send(new GetSecretValueCommand({ SecretId: STRIPE_WEBHOOK_SECRET_ARN }))
  return JSON.parse(value.SecretString).signing_secret
}

function answer(statusCode, body) {
  return { statusCode, headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }
}

async function handle(request) {
  secret ??= await readSecret()
  const body = Buffer.from(request.body, request.isBase64Encoded ? 'base64' : 'utf8')
  let event
  try {
    event = stripe.webhooks.constructEvent(body, request.headers['Stripe-Signature'], secret)
  } catch {
    return answer(400, { error: 'signature_invalid' })
  }
  try {
    await dynamodb.send(new PutItemCommand({
      TableName: STRIPE_EVENTS_TABLE,
      Item: {
        event_id: { S: event.id },
        event_type: { S: event.type },
        payload: { S: body.toString() },
        processed: { BOOL: false }
      },
      ConditionExpression: 'attribute_not_exists(event_id)'
    }))
  } catch (error) {
    if (error instanceof ConditionalCheckFailedException) return answer(200, { received: true, duplicate: true })
    throw error
  }
  await sqs.send(new SendMessageCommand({
    QueueUrl: STRIPE_EVENTS_QUEUE_URL,
    MessageGroupId: event.id,
    MessageDeduplicationId: event.id,
    MessageBody: JSON.stringify({ event_id: event.id })
  }))
  console.log(JSON.stringify({ level: 'INFO', message: 'accepted', event_id: event.id }))
  return answer(200, { received: true, duplicate: false, event_id: event.id })
}

const agent = new http.Agent({ keepAlive: true })
const [host, port] = AWS_LAMBDA_RUNTIME_API.split(':')

function runtime(method, path, body = '') {
  return new Promise((resolve, reject) => {
    const options = { host, port, agent, method, path: `/2018-06-01/runtime/invocation/${path}` }
    const request = http.request(options, (response) => {
      const chunks = []
      response.on('data', (chunk) => chunks.push(chunk))
      response.on('end', () => resolve([response.headers, Buffer.concat(chunks).toString()]))
    })
    request.on('error', reject)
    request.end(body)
  })
}

for (;;) {
  const [headers, request] = await runtime('GET', 'next')
  const response = await handle(JSON.parse(request))
  await runtime('POST', `${headers['lambda-runtime-aws-request-id']}/response`, JSON.stringify(response))
}
