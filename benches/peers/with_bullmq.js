// The job with BullMQ, and what conserver does for a vCon in the same chain: reads the document, tags it, saves it,
// writes it back and announces it.
//
// `node with_bullmq.js work PROCESSES CONCURRENCY` works; `enqueue` hands in the jobs whose ids come by standard input
// at once, `probe` one by one, timing each.
'use strict';

const cluster = require('node:cluster');
const fs = require('node:fs');
const path = require('node:path');
const { Queue, Worker } = require('bullmq');
const Redis = require('ioredis');

const QUEUE = 'vcons';
const ANNOUNCED = 'done';
// A storage as it stands in config.yml, or null.
const STORAGE = JSON.parse(process.env.PEER_STORAGE);
// Workers wait for Redis as long as it takes.
const WORKER = { maxRetriesPerRequest: null };
// Nobody reads results.
const JOB = { removeOnComplete: true };

const UPSERT = `INSERT INTO vcons (id, vcon, uuid, created_at, updated_at, subject, vcon_json)
    VALUES ($1, $2, $1, $3::text::timestamp, $4::text::timestamp, $5, $6::jsonb)
    ON CONFLICT (id) DO UPDATE SET vcon = excluded.vcon, uuid = excluded.uuid, created_at = excluded.created_at,
    updated_at = excluded.updated_at, subject = excluded.subject, vcon_json = excluded.vcon_json`;

function connect(options) {
  return new Redis(process.env.REDIS_URL, options);
}

function work(processes, concurrency) {
  if (cluster.isPrimary) {
    for (let number = 0; number < processes; number++) cluster.fork();
    // As a process manager does, after the pause that is the default of systemd.
    cluster.on('exit', () => setTimeout(() => cluster.fork(), 100));
    return;
  }
  const redis = connect({ ...WORKER, enableAutoPipelining: true });
  const save = storage(concurrency);
  const run = async ({ data: { uuid } }) => {
    const key = `vcon:${uuid}`;
    const vcon = JSON.parse(await redis.get(key));
    tag(vcon, 'checked');
    const text = JSON.stringify(vcon);
    await save(uuid, vcon, text);
    // Both in one round trip and one transaction.
    const steps = await redis.multi().set(key, text, 'KEEPTTL').rpush(ANNOUNCED, uuid).exec();
    for (const [error] of steps) if (error) throw error;
  };
  const worker = new Worker(QUEUE, run, { connection: connect(WORKER), concurrency });
  worker.on('error', console.error);
  worker.on('failed', (_, error) => console.error(error));
}

function tag(vcon, name) {
  vcon.attachments ??= [];
  let tags = vcon.attachments.find((it) => it.purpose === 'tags');
  if (!tags) {
    tags = { purpose: 'tags', body: '[]', encoding: 'json' };
    vcon.attachments.push(tags);
  }
  tags.body = JSON.stringify([...JSON.parse(tags.body), `${name}:${name}`]);
}

function storage(concurrency) {
  if (STORAGE === null) return async () => {};
  const { module, options } = STORAGE;
  if (module === 'storage.file') return (uuid, vcon, text) => saveFile(options.path, uuid, vcon, text);
  const { Pool } = require('pg');
  const { host, port, database, user, password } = options;
  const pool = new Pool({ host, port: Number(port), database, user, password, max: concurrency });
  return (uuid, vcon, text) => saveRow(pool, uuid, vcon, text);
}

function saveRow(pool, uuid, vcon, text) {
  const values = [uuid, vcon.vcon, vcon.created_at, new Date().toISOString(), vcon.subject, text];
  // Its name has it prepared once for each session.
  return pool.query({ name: 'upsert', text: UPSERT, values });
}

// Nobody sees half a file, and it is on disk with its name.
async function saveFile(root, uuid, vcon, text) {
  const folder = path.join(root, ...vcon.created_at.slice(0, 10).split('-'));
  await fs.promises.mkdir(folder, { recursive: true });
  const draft = path.join(folder, `.${uuid}.tmp`);
  const file = await fs.promises.open(draft, 'w');
  await file.writeFile(text);
  await file.sync();
  await file.close();
  await fs.promises.rename(draft, path.join(folder, `${uuid}.json`));
  const directory = await fs.promises.open(folder, 'r');
  await directory.sync();
  await directory.close();
}

async function enqueue(queue, uuids) {
  for (let start = 0; start < uuids.length; start += 1000) {
    const some = uuids.slice(start, start + 1000);
    await queue.addBulk(some.map((uuid) => ({ name: 'vcon', data: { uuid }, opts: JOB })));
  }
}

// Times each from before it is handed in until it is announced, in milliseconds; for the first, clients connect.
async function probe(queue, uuids) {
  const announced = connect();
  for (const [number, uuid] of uuids.entries()) {
    const pause = Math.min(-Math.log(1 - Math.random()) * 50, 250);
    await new Promise((resolve) => setTimeout(resolve, pause));
    const start = performance.now();
    await queue.add('vcon', { uuid }, JOB);
    if (!(await announced.blpop(ANNOUNCED, 60))) throw new Error(`${uuid} was not announced in time`);
    if (number > 0) console.log(performance.now() - start);
  }
  announced.disconnect();
}

async function main([what, ...numbers]) {
  if (what === 'work') return work(...numbers.map(Number));
  const queue = new Queue(QUEUE, { connection: connect() });
  const uuids = fs.readFileSync(0, 'utf8').split('\n').filter(Boolean);
  await { enqueue, probe }[what](queue, uuids);
  await queue.close();
  process.exit();
}

main(process.argv.slice(2));
